//! Logins at a server, by stand-ins for sshd's processes.

use std::collections::HashMap;
use std::io::PipeWriter;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use rssh_proto::{DeviceId, TunnelId, claim};
use rssh_serverd::config::Config;
use rssh_serverd::sshd::{AUTHORIZE_SOCKET, CLAIM_SOCKET};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use super::standin::{self, Answer, Order};

/// How many logins the stand-ins of one chain are good for.
const CHAIN: u32 = 50;
/// How many stand-ins a login takes, one below the other.
const PLACES: u32 = 3;

/// A server that devices land on.
#[derive(Debug, Clone)]
pub struct Server {
    pub config: Config,
    /// The user that its sshd's sessions run as.
    pub session_uid: u32,
}

/// Logins at one server; each can be used once.
pub struct Logins {
    dir: PathBuf,
    orders: UnixDatagram,
    answers: Arc<Answers>,
    /// The monitors of logins that are free, the next one last.
    free: Mutex<Vec<u32>>,
    chains: Vec<Child>,
}

/// Who waits for the answer of which stand-in.
type Answers = Mutex<HashMap<u32, oneshot::Sender<Answer>>>;

impl Logins {
    /// Starts stand-ins for so many logins, which have their sockets in a directory of their own.
    ///
    /// # Errors
    /// When they do not come up.
    pub async fn start(program: &Path, dir: PathBuf, server: &Server, count: u32) -> Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let (reader, writer) = std::io::pipe()?;
        let reader = pipe::Receiver::from_owned_fd(reader.into())?;
        let answers = Arc::<Answers>::default();
        let (ups, mut up) = mpsc::channel(1024);
        tokio::spawn(hear(reader, answers.clone(), ups));
        let chains = count.div_ceil(CHAIN);
        let each = CHAIN + PLACES - 1;
        let mut logins = Self {
            orders: UnixDatagram::unbound()?,
            answers,
            // Neighbours in a chain share processes: the next login is another chain's.
            free: Mutex::new(
                (0..CHAIN)
                    .rev()
                    .flat_map(|login| (0..chains).map(move |chain| chain * each + login))
                    .collect(),
            ),
            chains: Vec::new(),
            dir,
        };
        for chain in 0..chains {
            let head = logins.head(program, server, &writer, chain * each, each - 1)?;
            logins.chains.push(head);
            for _ in 0..each {
                up.recv().await.context("the stand-ins' answers cannot be heard")?;
            }
        }
        Ok(logins)
    }

    fn head(&self, program: &Path, server: &Server, writer: &PipeWriter, number: u32, below: u32) -> Result<Child> {
        let child = Command::new(program)
            .arg("--dir")
            .arg(&self.dir)
            .args(["--number", &number.to_string(), "--below", &below.to_string()])
            .arg("--authorize")
            .arg(server.config.socket(AUTHORIZE_SOCKET))
            .arg("--claim")
            .arg(server.config.socket(CLAIM_SOCKET))
            .args(["--session-uid", &server.session_uid.to_string()])
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .spawn();
        child.with_context(|| format!("cannot run {}", program.display()))
    }

    /// A device logs in with its key; returns its login.
    ///
    /// # Errors
    /// When no login is free, or serverd refuses.
    pub async fn log_in(&self, key: &str) -> Result<Login<'_>> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let monitor = free.context("every login of a server is used up")?;
        let answer = self
            .tell(monitor + 1, &Order::Authorize { line: key.to_owned() })
            .await?;
        ensure!(answer == Answer::Authorized, "a login was refused: {answer:?}");
        Ok(Login { logins: self, monitor })
    }

    async fn tell(&self, number: u32, order: &Order) -> Result<Answer> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.answers).insert(number, sender);
        let order = serde_json::to_vec(order)?;
        self.orders.send_to(&order, standin::address(&self.dir, number))?;
        receiver.await.context("a stand-in has ended")
    }
}

impl Drop for Logins {
    fn drop(&mut self) {
        // Those below follow.
        for head in &mut self.chains {
            head.kill().ok();
            head.wait().ok();
        }
    }
}

fn lock(answers: &Answers) -> std::sync::MutexGuard<'_, HashMap<u32, oneshot::Sender<Answer>>> {
    answers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands answers to whom they are for, until every stand-in has ended.
async fn hear(reader: pipe::Receiver, answers: Arc<Answers>, ups: mpsc::Sender<u32>) {
    let mut lines = BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str::<(u32, Answer)>(&line) {
            Ok((number, Answer::Up)) => drop(ups.send(number).await),
            Ok((number, answer)) => {
                if let Some(waits) = lock(&answers).remove(&number) {
                    // One that no longer waits is no fault.
                    let _ = waits.send(answer);
                }
            }
            Err(error) => eprintln!("a stand-in said {line:?}: {error}"),
        }
    }
    lock(&answers).clear();
}

/// A login that has been authorized.
pub struct Login<'a> {
    logins: &'a Logins,
    monitor: u32,
}

impl Login<'_> {
    /// Claims a tunnel and listens for it; says how that went.
    ///
    /// # Errors
    /// When the stand-in has ended.
    pub async fn claim(self, device: &DeviceId, tunnel: TunnelId) -> Result<Answer> {
        let line = format!("{device} - {}", claim::command(tunnel));
        self.logins.tell(self.monitor + 2, &Order::Claim { line }).await
    }
}
