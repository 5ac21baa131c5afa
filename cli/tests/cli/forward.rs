//! `rssh forward`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rssh_proto::payload::{Rank, ReplyBody};
use rssh_proto::{Failure, FailureKind};
use serde_json::Value;

use crate::balancer::Act;
use crate::rig::{Rig, failed};
use crate::server::{opens, reply};

const HOST: &str = "s1-20000-1999999000-0.proxy.test";

/// A running forward with the addresses that it reported.
struct Running {
    child: Child,
    lines: Vec<String>,
}

impl Running {
    fn start(rig: &Rig, line: &str, ports: usize) -> Self {
        let mut command = rig.process(line);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let lines = stdout.lines().take(ports).map(Result::unwrap).collect();
        Self { child, lines }
    }

    fn connect(&self, nth: usize) -> TcpStream {
        TcpStream::connect(self.lines[nth].split(' ').next().unwrap()).unwrap()
    }

    /// Interrupts it; returns its exit code and stderr.
    fn end(mut self) -> (Option<i32>, String) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGINT).unwrap();
        let mut told = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        (self.child.wait().unwrap().code(), told)
    }
}

fn ask(mut socket: TcpStream, question: &str) -> String {
    socket.write_all(question.as_bytes()).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn connections_to_several_ports_share_a_tunnel_each_that_the_first_one_opens() {
    let rig = Rig::with(opens(HOST), |_, _| Act::Echo);
    let running = Running::start(&rig, "forward device-1 0:80 0:plc-1", 2);
    assert!(
        running.lines[0].ends_with(" device-1 localhost:80"),
        "{:?}",
        running.lines
    );
    assert!(running.lines[1].ends_with(" device-1 plc-1"), "{:?}", running.lines);
    assert_eq!(rig.peers().0.requests().len(), 0, "nothing is opened for nobody");
    let threads: Vec<_> = (0..4)
        .map(|nth| {
            let socket = running.connect(nth % 2);
            std::thread::spawn(move || ask(socket, "hello "))
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), "hello bye");
    }
    assert_eq!(rig.peers().0.requests().len(), 2);
    assert_eq!(running.end(), (Some(130), String::new()));
}

#[test]
fn a_device_that_is_offline_costs_its_connection_and_no_more() {
    let open = opens(HOST);
    let offline_at_first = Box::new(move |request: &_, nth| {
        if nth > 0 {
            return open(request, nth);
        }
        let failure = Failure::new(FailureKind::Offline, "device-1 is offline");
        vec![reply(request, 0, Rank::Final, ReplyBody::Failed(failure))]
    });
    let rig = Rig::with(offline_at_first, |_, _| Act::Echo);
    let running = Running::start(&rig, "forward device-1 0:80 --json", 1);
    let object: Value = serde_json::from_str(&running.lines[0]).unwrap();
    assert_eq!(
        (&object["device"], &object["target"]),
        (&"device-1".into(), &"localhost:80".into())
    );
    let connect = || TcpStream::connect(object["local"].as_str().unwrap()).unwrap();
    let mut nothing = String::new();
    let _ = connect().read_to_string(&mut nothing);
    assert_eq!(nothing, "");
    assert_eq!(ask(connect(), "x"), "xbye");
    assert_eq!(running.end(), (Some(130), "rssh: device-1 is offline\n".into()));
}

#[test]
fn a_port_that_is_taken_is_named_and_none_is_served() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let output = Rig::new()
        .rssh(&format!("forward device-1 0:80 {port}:80"))
        .output()
        .unwrap();
    failed(&output, 78, &[&port.to_string(), "0 for any free port"]);
}

#[test]
fn services_of_this_side_are_offered_by_the_systems_ssh() {
    let rig = Rig::new().program("ssh", "printf '%s ' \"$@\" >&2; exit 3");
    let output = rig
        .rssh("forward root@device-1 -R 3128:localhost:3128 -R 0:lan:80")
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(88), "{told}");
    assert!(told.contains("-R 3128:localhost:3128 -R 0:lan:80 "), "{told}");
    assert!(
        told.contains("ExitOnForwardFailure=yes") && told.contains(" -l root device-1 "),
        "{told}"
    );
}
