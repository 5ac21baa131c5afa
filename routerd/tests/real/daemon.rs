//! rssh-routerd as a whole: from the registry to who gets through.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use redis::Commands as _;
use rssh_mqtt::{Dial, Event, Identity, IdentityFiles, Publish, Session, Settings};
use rssh_proto::payload::{self, Presence, RouterStatus, ServerState, ServerStatus, V1};
use rssh_proto::registration::{REDIS_CHANNEL, Registration, SignedRegistration, redis_key};
use rssh_proto::topic::Topic;
use rssh_proto::{Generation, InstanceId};
use rssh_routerd::desired::Map;

use crate::front::{Front, Got};
use crate::parts::{Part, banner, free, greeter, health, loopback, postgres, redis, sql, until};
use crate::pki::{Ca, Leaf, LeafFiles};

/// Everything around one routerd.
struct Stack {
    routerd: Option<Part>,
    front: Front,
    redis: Part,
    redis_url: String,
    postgres: Part,
    database: String,
    mosquitto: Part,
    broker: Broker,
}

/// A client of the broker that speaks for servers, and hears the router.
struct Broker {
    session: Session,
    heard: Arc<Mutex<Option<RouterStatus>>>,
}

/// A server that greets on its tunnels' port and its ssh port, and says that it is well.
struct Server {
    id: &'static str,
    leaf: Leaf,
    registration: Registration,
    tunnel: SocketAddr,
}

impl Stack {
    async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("rssh-").tempdir().unwrap();
        // PostgreSQL runs as another user than the tests.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let (redis, redis_url) = redis(dir.path());
        let (postgres, database) = postgres(dir.path()).await;
        let broker = free(loopback());
        let mut front = Front::within(dir, &redis_url, &database, broker);
        let mosquitto = mosquitto(front.path(), &front.servers, broker).await;
        let admin = front.servers.client("admin").write(front.path(), "admin");
        let broker = Broker::connect(&front, &admin, broker).await;
        let rendered = routerd(front.path(), "render").output().unwrap();
        assert!(
            rendered.status.success(),
            "{}",
            String::from_utf8_lossy(&rendered.stderr)
        );
        front.start().await;
        let mut stack = Self {
            front,
            redis,
            redis_url,
            postgres,
            database,
            mosquitto,
            routerd: None,
            broker,
        };
        stack.run().await;
        stack
    }

    async fn run(&mut self) {
        self.broker.forget();
        self.routerd = Some(Part::start(
            self.front.path(),
            "routerd",
            &mut routerd(self.front.path(), "run"),
        ));
        until("the router says it is online", async || self.broker.router().is_some()).await;
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.front.path().join("routerd.log")).unwrap()
    }

    fn redis(&self) -> redis::Connection {
        redis::Client::open(self.redis_url.as_str())
            .unwrap()
            .get_connection()
            .unwrap()
    }

    async fn server(&self, id: &'static str) -> Server {
        let ip = loopback();
        let tunnel = greeter(free(ip), id).await;
        let registration = Registration {
            v: V1,
            server: id.parse().unwrap(),
            address: ip,
            ssh: vec![greeter(free(ip), id).await],
            health: health(free(ip)).await,
            https: None,
            state: ServerState::Serving,
            capacity: 1000,
            tunnels: 0,
            load: 0.0,
            generation: Generation(1),
            instance: InstanceId::generate(),
            counter: 1,
        };
        Server {
            id,
            leaf: self.front.servers.client(id),
            registration,
            tunnel,
        }
    }

    /// Puts a server where its serverd would: PostgreSQL, then Redis, then the announcement.
    async fn register(&self, server: &Server) {
        let entry = server.entry();
        let generation = server.registration.generation;
        let upsert = format!(
            "INSERT INTO servers (id, registration, generation) VALUES ('{id}', '{entry}', {generation}) \
             ON CONFLICT (id) DO UPDATE SET registration = '{entry}', generation = {generation}, lost_at = NULL",
            id = server.id
        );
        sql(&self.database, &upsert).await.unwrap();
        self.announce(server.id, &entry);
    }

    fn announce(&self, id: &str, entry: &str) {
        let mut redis = self.redis();
        let () = redis.set(redis_key(&id.parse().unwrap()), entry).unwrap();
        let () = redis.publish(REDIS_CHANNEL, id).unwrap();
    }

    async fn reaches(&self, server: &Server) -> bool {
        let name = self.front.name(server.id, server.tunnel.port(), Some("alice"));
        self.front.user(&self.front.alice, &name).await == Got::Banner(banner(server.id))
    }

    /// Whether HAProxy has a server's first ssh address in use.
    async fn lands(&self, id: &str) -> bool {
        let actual = self.front.runtime().actual().await.unwrap();
        actual
            .pool
            .get(&format!("{id}_0"))
            .is_some_and(|server| server.enabled && server.weight > 0)
    }
}

impl Server {
    fn entry(&self) -> String {
        let body = serde_json::to_string(&self.registration).unwrap();
        let signature = self.leaf.sign(body.as_bytes());
        serde_json::to_string(&SignedRegistration::new(body, &self.leaf.der, &signature)).unwrap()
    }

    fn status(&self, state: ServerState) -> Publish {
        let status = ServerStatus {
            v: V1,
            state,
            generation: self.registration.generation,
            instance: self.registration.instance.clone(),
        };
        let topic = Topic::ServerStatus(self.registration.server.clone());
        Publish::new(topic, payload::encode(&status)).retained()
    }
}

impl Broker {
    async fn connect(front: &Front, who: &LeafFiles, broker: SocketAddr) -> Self {
        let identity = Identity::load(&IdentityFiles {
            ca: front.path().join("servers-ca.pem"),
            cert: who.cert.clone(),
            key: who.key.clone(),
        });
        let (session, mut events, driver) = Session::new(Settings {
            brokers: vec![broker.to_string().parse().unwrap()],
            tls: Arc::new(identity.unwrap().client_config().unwrap()),
            cn: "admin".into(),
            keep_alive: Duration::from_secs(30),
            inflight: 16,
            queue: 64,
            subscriptions: vec!["rssh/v1/router/lb1/status".into()],
            will: None,
            reconnect: (Duration::from_millis(10), Duration::from_millis(100)),
            dial: Dial::default(),
        });
        tokio::spawn(driver);
        let heard = Arc::new(Mutex::new(None));
        let hears = heard.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if let Event::Message(message) = event {
                    *hears.lock().unwrap() = Some(payload::decode(&message.payload).unwrap());
                }
            }
        });
        let up = session.clone();
        until("the broker takes us", async || up.is_up()).await;
        Self { session, heard }
    }

    fn forget(&self) {
        *self.heard.lock().unwrap() = None;
    }

    /// The router's last status, when it is online.
    fn router(&self) -> Option<RouterStatus> {
        let heard = self.heard.lock().unwrap().clone();
        heard.filter(|status| status.presence == Presence::Online)
    }

    async fn say(&self, publish: Publish) {
        self.session.publish(publish).await.unwrap();
    }
}

fn routerd(dir: &Path, verb: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rssh-routerd"));
    command.arg(verb).arg("--config").arg(dir.join("routerd.toml"));
    command
}

async fn mosquitto(dir: &Path, servers: &Ca, listen: SocketAddr) -> Part {
    let leaf = servers.server(&listen.ip().to_string()).write(dir, "broker");
    let config = format!(
        "listener {} {}\ncafile {d}/servers-ca.pem\ncertfile {}\nkeyfile {}\nrequire_certificate true\n\
         use_identity_as_username true\nallow_anonymous false\nuser root\n",
        listen.port(),
        listen.ip(),
        leaf.cert.display(),
        leaf.key.display(),
        d = dir.display(),
    );
    std::fs::write(dir.join("mosquitto.conf"), config).unwrap();
    let part = Part::start(
        dir,
        "mosquitto",
        Command::new("/usr/sbin/mosquitto")
            .arg("-c")
            .arg(dir.join("mosquitto.conf")),
    );
    until("mosquitto listens", async || {
        tokio::net::TcpStream::connect(listen).await.is_ok()
    })
    .await;
    part
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_registers_is_routed_and_one_that_lies_is_not() {
    let stack = Stack::start().await;
    let s1 = stack.server("s1").await;
    stack.register(&s1).await;
    let start = Instant::now();
    until("s1 is routed", async || stack.reaches(&s1).await).await;
    println!("routed {:?} after it registered", start.elapsed());
    until("s1 takes landings", async || stack.lands("s1").await).await;
    // Others who can write to Redis: with another server's certificate, without any, with an entry that was changed.
    let s2 = stack.server("s2").await;
    let of_another = Server {
        leaf: stack.front.servers.client("s9"),
        registration: s2.registration.clone(),
        ..s2
    };
    let of_a_user = Server {
        id: "s3",
        leaf: stack.front.users.client("s3"),
        ..stack.server("s3").await
    };
    let s4 = stack.server("s4").await;
    let changed = s4.entry().replace("\\\"capacity\\\":1000", "\\\"capacity\\\":1001");
    assert_ne!(changed, s4.entry());
    let moved = Registration {
        address: of_a_user.registration.address,
        counter: 2,
        ..s1.registration.clone()
    };
    let of_old = SignedRegistration {
        body: serde_json::to_string(&moved).unwrap(),
        ..serde_json::from_str(&s1.entry()).unwrap()
    };
    stack.announce("s2", &of_another.entry());
    stack.announce("s3", &of_a_user.entry());
    stack.announce("s4", &changed);
    stack.announce("s5", "{}");
    stack.announce("s1", &serde_json::to_string(&of_old).unwrap());
    for id in ["s1", "s2", "s3", "s4", "s5"] {
        until("the refusal is logged", async || {
            stack
                .log()
                .lines()
                .any(|line| line.contains("registration refused") && line.contains(&format!("server={id} ")))
        })
        .await;
    }
    let actual = stack.front.runtime().actual().await.unwrap();
    assert_eq!(actual.maps[&Map::Addresses].rows.keys().collect::<Vec<_>>(), ["s1"]);
    assert!(stack.reaches(&s1).await);
    let status = stack.broker.router().unwrap();
    assert_eq!((status.routed, status.landing, status.stale), (1, 1, false));
    for secret in [
        stack.front.master.to_base64(),
        stack.front.master.key(&s1.registration.server).to_base64(),
    ] {
        assert!(!stack.log().contains(&secret), "a key in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_redis_frozen_a_servers_status_still_acts() {
    let stack = Stack::start().await;
    let s1 = stack.server("s1").await;
    stack.register(&s1).await;
    until("s1 takes landings", async || stack.lands("s1").await).await;
    stack.redis.signal(Signal::SIGSTOP);
    let start = Instant::now();
    stack.broker.say(s1.status(ServerState::Offline)).await;
    until("s1 takes no landings", async || !stack.lands("s1").await).await;
    let took = start.elapsed();
    println!("out of rotation {took:?} after its will");
    assert!(
        took < Duration::from_secs(1),
        "before Redis can even be noticed: {took:?}"
    );
    assert!(stack.reaches(&s1).await, "its tunnels stay");
    until("the router says that its routes are the last good", async || {
        stack
            .broker
            .router()
            .is_some_and(|status| status.stale && status.routed == 1 && status.landing == 0)
    })
    .await;
    let config = std::fs::read_to_string(stack.front.path().join("haproxy/haproxy.cfg")).unwrap();
    assert!(
        config
            .lines()
            .any(|line| line.contains("server s1_0 ") && line.ends_with(" disabled")),
        "{config}"
    );
    // A late word of an older life changes nothing, its own does.
    let late = Server {
        registration: Registration {
            generation: Generation(0),
            ..s1.registration.clone()
        },
        leaf: stack.front.servers.client("s1"),
        ..s1
    };
    stack.broker.say(late.status(ServerState::Serving)).await;
    let s1 = Server {
        registration: s1.registration.clone(),
        ..late
    };
    let s2 = stack.server("s2").await;
    let upsert = format!(
        "INSERT INTO servers (id, registration, generation) VALUES ('s2', '{}', 1)",
        s2.entry()
    );
    sql(&stack.database, &upsert).await.unwrap();
    until("s2 is known from PostgreSQL", async || stack.lands("s2").await).await;
    assert!(!stack.lands("s1").await);
    stack.broker.say(s1.status(ServerState::Serving)).await;
    until("s1 takes landings again", async || stack.lands("s1").await).await;
    stack.redis.signal(Signal::SIGCONT);
    until("nothing is stale", async || {
        stack.broker.router().is_some_and(|status| !status.stale)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_with_postgresqls_word_a_route_goes() {
    let mut stack = Stack::start().await;
    let (s1, s2) = (stack.server("s1").await, stack.server("s2").await);
    for server in [&s1, &s2] {
        stack.register(server).await;
        until("it is routed", async || stack.reaches(server).await).await;
    }
    // Redis forgets everything; looks into it and PostgreSQL follow.
    let () = redis::cmd("FLUSHALL").query(&mut stack.redis()).unwrap();
    let generation = stack.broker.router().unwrap().map_generation;
    // Both are away, and the router starts anew: it knows what it knew.
    stack.redis.end(Signal::SIGKILL);
    stack.postgres.signal(Signal::SIGSTOP);
    until("the router notices", async || {
        stack.broker.router().is_some_and(|status| status.stale)
    })
    .await;
    assert_eq!(
        stack.broker.router().unwrap().map_generation,
        generation,
        "and has changed nothing"
    );
    stack.routerd.as_mut().unwrap().end(Signal::SIGKILL);
    stack.run().await;
    until("it has both", async || {
        stack
            .broker
            .router()
            .is_some_and(|status| status.routed == 2 && status.stale)
    })
    .await;
    assert!(stack.reaches(&s1).await && stack.reaches(&s2).await);
    // HAProxy restarts meanwhile: the files have it all.
    stack.front.stop();
    stack.front.start().await;
    assert!(stack.reaches(&s1).await && stack.reaches(&s2).await);
    assert!(stack.lands("s1").await && stack.lands("s2").await);
    // PostgreSQL is back, Redis is back and empty: s1 is lost, s2 is still in its table.
    stack.postgres.signal(Signal::SIGCONT);
    (stack.redis, _) = redis(stack.front.path());
    sql(&stack.database, "UPDATE servers SET lost_at = now() WHERE id = 's1'")
        .await
        .unwrap();
    until("s1 is refused", async || !stack.reaches(&s1).await).await;
    assert!(stack.reaches(&s2).await);
    sql(&stack.database, "DELETE FROM servers WHERE id = 's2'")
        .await
        .unwrap();
    until("s2 is refused", async || !stack.reaches(&s2).await).await;
    until("the pool is empty", async || {
        stack.front.runtime().actual().await.unwrap().pool.is_empty()
    })
    .await;
    // A fenced server comes back with a higher generation.
    let again = Server {
        registration: Registration {
            generation: Generation(2),
            ..s1.registration.clone()
        },
        leaf: stack.front.servers.client("s1"),
        ..s1
    };
    stack.register(&again).await;
    until("s1 is routed again", async || stack.reaches(&again).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_restarted_from_other_files_is_put_right() {
    let mut stack = Stack::start().await;
    let s1 = stack.server("s1").await;
    stack.register(&s1).await;
    until("s1 takes landings", async || stack.lands("s1").await).await;
    // Someone's map from yesterday.
    stack.front.stop();
    std::fs::write(
        stack.front.path().join("haproxy/maps/addresses.map"),
        "s7 127.0.0.7\ns7 127.0.0.8\n",
    )
    .unwrap();
    stack.front.start().await;
    until("s1 is back", async || stack.reaches(&s1).await).await;
    until("nobody else is there", async || {
        let map = &stack.front.runtime().actual().await.unwrap().maps[&Map::Addresses];
        map.rows.len() == 1 && !map.duplicates
    })
    .await;
    // Frozen for a while: what happened meanwhile is made up for.
    let log = stack.front.path().join("haproxy/haproxy.cfg");
    let s2 = stack.server("s2").await;
    let worker = stack.front.runtime().worker().await.unwrap();
    let pid = nix::unistd::Pid::from_raw(worker as i32);
    nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
    stack.register(&s2).await;
    until("the file has s2", async || {
        std::fs::read_to_string(&log).unwrap().contains("server s2_0 ")
    })
    .await;
    nix::sys::signal::kill(pid, Signal::SIGCONT).unwrap();
    until("s2 is routed", async || stack.reaches(&s2).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revocations_of_the_operator_act_within_seconds_and_a_goodbye_is_said() {
    let mut stack = Stack::start().await;
    let s1 = stack.server("s1").await;
    stack.register(&s1).await;
    until("s1 is routed", async || stack.reaches(&s1).await).await;
    let revoked = stack.front.path().join("haproxy/maps/revoked-users.map");
    std::fs::write(&revoked, "# left us\nalice 1\n").unwrap();
    until("alice is refused", async || !stack.reaches(&s1).await).await;
    let name = stack.front.name("s1", s1.tunnel.port(), Some("bob"));
    assert_eq!(
        stack.front.user(&stack.front.bob, &name).await,
        Got::Banner(banner("s1"))
    );
    // A line that is no user leaves what is in force in force.
    std::fs::write(&revoked, "al;ice 1\n").unwrap();
    until("the fault is told", async || {
        stack.log().contains("revoked-users.map, line 1")
    })
    .await;
    assert!(!stack.reaches(&s1).await);
    std::fs::write(&revoked, "").unwrap();
    until("alice is back", async || stack.reaches(&s1).await).await;
    // What the administrator's command has put into the database acts likewise, and outlives routerd and PostgreSQL.
    let revoke = "INSERT INTO identities VALUES ('alice', 'user', now()), ('device-1', 'device', now())";
    sql(&stack.database, revoke).await.unwrap();
    until("alice is refused", async || !stack.reaches(&s1).await).await;
    let kept = std::fs::read_to_string(stack.front.path().join("haproxy/maps/revoked.map")).unwrap();
    assert_eq!(kept, "alice 1\n");
    assert_eq!(
        stack.front.user(&stack.front.bob, &name).await,
        Got::Banner(banner("s1"))
    );
    sql(&stack.database, "UPDATE identities SET revoked_at = NULL")
        .await
        .unwrap();
    until("alice is back again", async || stack.reaches(&s1).await).await;
    stack.routerd.as_mut().unwrap().end(Signal::SIGTERM);
    until("it said goodbye", async || stack.broker.router().is_none()).await;
    assert!(stack.mosquitto.is_running());
}

#[test]
fn a_bad_configuration_is_exit_code_78_and_names_the_key() {
    let front = Front::alone();
    let path = front.path().join("routerd.toml");
    for (good, bad, names) in [
        ("[registry]", "[registryy]", "registryy"),
        ("domain = \"proxy.test\"", "domain = \"proxy.test;\"", "domain"),
        ("redis://", "carrier-pigeon://", "redis.url"),
        ("name-master = ", "name-master = \"/nowhere\"\n#", "name-master"),
        ("servers-ca = ", "servers-ca = \"/nowhere\"\n#", "/nowhere"),
        ("certificate = ", "certificate = \"/nowhere\"\n#", "haproxy.certificate"),
    ] {
        assert!(front.config_text.contains(good), "{good}");
        std::fs::write(&path, front.config_text.replacen(good, bad, 1)).unwrap();
        let output = routerd(front.path(), "check-config").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains(names), "{said}");
    }
    std::fs::write(&path, &front.config_text).unwrap();
    assert!(routerd(front.path(), "check-config").status().unwrap().success());
}

#[test]
fn init_makes_a_key_that_only_its_owner_reads_and_keeps_it() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().unwrap();
    let init = || {
        let made = Command::new(env!("CARGO_BIN_EXE_rssh-routerd"))
            .args(["init", "--router", "lb1", "--dir"])
            .arg(dir.path())
            .status();
        assert!(made.unwrap().success());
        std::fs::read(dir.path().join("router.key")).unwrap()
    };
    let key = init();
    assert_eq!(
        std::fs::metadata(dir.path().join("router.key")).unwrap().mode() & 0o777,
        0o600
    );
    assert!(dir.path().join("router.csr").exists());
    assert_eq!(init(), key);
}
