//! One ssh against a real sshd.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use crate::rig::{Sshd, banner, processes_with, serve_banner, serve_banner_at, wait_for};
use rssh_agentd::config::Ssh as Settings;
use rssh_agentd::init;
use rssh_agentd::rundir::RunDir;
use rssh_agentd::ssh::{Ended, Endpoint, Landing, News, Ssh, Stop, config};
use rssh_proto::claim::Claimed;
use rssh_proto::{FailureKind, TunnelId};
use tokio::sync::{mpsc, oneshot, watch};

struct Device {
    state: tempfile::TempDir,
    ssh: Ssh,
}

impl Device {
    fn new(sshd: &Sshd) -> Self {
        Self::with(&sshd.ssh_config())
    }

    fn with(settings: &Settings) -> Self {
        let state = tempfile::tempdir().unwrap();
        let run = RunDir::open(state.path(), &"device-1".parse().unwrap()).unwrap();
        fs::write(run.ssh_config(), config::render(settings, true)).unwrap();
        let ssh = Ssh::new(Path::new("/usr/bin/ssh"), run);
        Self { state, ssh }
    }

    fn ssh_processes(&self) -> Vec<u32> {
        processes_with(self.state.path())
    }
}

fn landing(port: u16, to: u16) -> Landing {
    Landing {
        tunnel: TunnelId::generate(),
        lb: format!("127.0.0.1:{port}").parse().unwrap(),
        other_lbs: Vec::new(),
        target: format!("127.0.0.1:{to}").parse().unwrap(),
        account: "root".parse().unwrap(),
        to: Endpoint {
            host: "127.0.0.1".into(),
            port: to,
        },
    }
}

/// No word of a port.
fn nowhere() -> watch::Receiver<Option<SocketAddr>> {
    watch::channel(None).1
}

/// Carries a tunnel until it ends by itself; for those that do not land.
async fn ends(device: &Device, landing: &Landing) -> Ended {
    device
        .ssh
        .carry(landing, std::future::pending(), nowhere(), |news| {
            assert!(matches!(news, News::Connected(_)), "{news:?}");
        })
        .await
}

async fn landed(news: &mut mpsc::UnboundedReceiver<News>) -> Claimed {
    let way = match news.recv().await {
        Some(News::Connected(way)) => way,
        other => panic!("{other:?}"),
    };
    assert!(way.local.is_loopback(), "{way:?}");
    match news.recv().await {
        Some(News::Landed { claimed, .. }) => claimed,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_tunnel_lands_carries_bytes_and_leaves_nothing_when_stopped() {
    let sshd = Sshd::start();
    let device = Device::new(&sshd);
    let service = serve_banner("hello from the device\n");
    let landing = landing(sshd.port, service.port());
    let (stop, stopped) = oneshot::channel();
    let (tell, mut news) = mpsc::unbounded_channel();
    let carried = device
        .ssh
        .carry(&landing, async { stopped.await.unwrap() }, nowhere(), |told| {
            tell.send(told).unwrap()
        });
    let check = async {
        let claimed = landed(&mut news).await;
        assert_eq!(claimed.port, sshd.granted);
        let port = claimed.port;
        let text = tokio::task::spawn_blocking(move || banner(port)).await.unwrap();
        assert_eq!(text.as_deref(), Some("hello from the device\n"));
        assert_eq!(device.ssh_processes().len(), 1, "one ssh");
        stop.send(Stop::End).unwrap();
    };
    let (ended, ()) = tokio::join!(carried, check);
    assert_eq!(ended, Ended::Stopped);
    assert_eq!(device.ssh_processes(), [] as [u32; 0]);
    assert_eq!(sshd.commands(), format!("claim {}\n", landing.tunnel));
    assert!(
        !device
            .state
            .path()
            .join("run")
            .join(landing.tunnel.to_string())
            .exists()
    );
    wait_for("the port is free again", || {
        banner(sshd.granted).is_none().then_some(())
    });
}

#[tokio::test]
async fn a_key_that_the_device_has_made_signs_without_being_offered_first() {
    let sshd = Sshd::start();
    init::make(sshd.dir.path()).unwrap();
    let admitted = fs::read_to_string(sshd.path("authorized_keys")).unwrap();
    let [before, made] = ["key.pub", "ssh_key.public"].map(|name| init::public_key(&sshd.path(name)).unwrap());
    fs::write(sshd.path("authorized_keys"), admitted.replace(&before, &made)).unwrap();
    let device = Device::with(&Settings {
        key: sshd.path("ssh_key"),
        ..sshd.ssh_config()
    });
    let landing = landing(sshd.port, 9);
    let (tell, mut news) = mpsc::unbounded_channel();
    let carried = device.ssh.carry(&landing, std::future::pending(), nowhere(), |told| {
        tell.send(told).unwrap()
    });
    tokio::select! {
        ended = carried => panic!("{ended:?}"),
        _ = landed(&mut news) => {}
    }
    let log = fs::read_to_string(sshd.path("sshd.log")).unwrap();
    assert_eq!(log.matches("Accepted key").count(), 1, "{log}");
}

#[tokio::test]
async fn a_port_that_was_told_is_forwarded_before_the_claim_is_answered_and_a_wrong_one_does_no_harm() {
    let sshd = Sshd::start();
    let device = Device::new(&sshd);
    let service = serve_banner("hello from the device\n");
    // The claim is answered once a file is there.
    let held = sshd.path("held");
    let claim = fs::read_to_string(sshd.path("claim.sh")).unwrap();
    sshd.answer_claims_with(&format!(
        "while [ -e {} ]; do sleep 0.01; done\n{claim}",
        held.display()
    ));
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for (told, early) in [(sshd.granted, true), (stranger.local_addr().unwrap().port(), false)] {
        fs::write(&held, "").unwrap();
        let landing = landing(sshd.port, service.port());
        let (tell, mut news) = mpsc::unbounded_channel();
        let (_teller, port) = watch::channel(Some(SocketAddr::from(([127, 0, 0, 1], told))));
        let carried = device
            .ssh
            .carry(&landing, std::future::pending(), port, |told| tell.send(told).unwrap());
        let answered = || {
            tokio::task::spawn_blocking({
                let granted = sshd.granted;
                move || wait_for("the port answers", || banner(granted))
            })
        };
        let check = async {
            if early {
                assert_eq!(answered().await.unwrap(), "hello from the device\n");
            }
            fs::remove_file(&held).unwrap();
            assert_eq!(landed(&mut news).await.port, sshd.granted);
            assert_eq!(answered().await.unwrap(), "hello from the device\n");
        };
        tokio::select! {
            ended = carried => panic!("{told}: {ended:?}"),
            () = check => {}
        }
        wait_for("the port is free again", || {
            banner(sshd.granted).is_none().then_some(())
        });
    }
}

#[tokio::test]
async fn a_loss_is_noticed_and_named() {
    let sshd = Sshd::start();
    let device = Device::new(&sshd);
    let landing = landing(sshd.port, 9);
    let (tell, mut news) = mpsc::unbounded_channel();
    let carried = device.ssh.carry(&landing, std::future::pending(), nowhere(), |told| {
        tell.send(told).unwrap()
    });
    let kill = async {
        landed(&mut news).await;
        let pid = device.ssh_processes()[0];
        crate::rig::run("kill", &["-9", &pid.to_string()]);
        Instant::now()
    };
    let (ended, killed) = tokio::join!(carried, kill);
    assert!(killed.elapsed().as_millis() < 500, "{:?}", killed.elapsed());
    let Ended::Failed(fault) = ended else {
        panic!("{ended:?}")
    };
    assert_eq!(fault.reason, "ssh was ended by signal 9");
}

#[tokio::test]
async fn a_target_that_is_dead_is_told_and_the_tunnel_carries_on_when_it_is_back() {
    let sshd = Sshd::start();
    let device = Device::new(&sshd);
    let target = crate::rig::free_port();
    let landing = landing(sshd.port, target);
    let (tell, mut news) = mpsc::unbounded_channel();
    let carried = device.ssh.carry(&landing, std::future::pending(), nowhere(), |told| {
        tell.send(told).unwrap()
    });
    let check = async {
        let port = landed(&mut news).await.port;
        let ask = move || tokio::task::spawn_blocking(move || banner(port));
        assert_eq!(ask().await.unwrap().as_deref(), Some(""));
        assert_eq!(news.recv().await, Some(News::TargetRefused));
        serve_banner_at(target, "back\n");
        assert_eq!(ask().await.unwrap().as_deref(), Some("back\n"));
    };
    tokio::select! {
        ended = carried => panic!("{ended:?}"),
        () = check => {}
    }
}

#[tokio::test]
async fn nothing_listening_is_a_passing_fault() {
    let sshd = Sshd::start();
    let device = Device::new(&sshd);
    let ended = ends(&device, &landing(crate::rig::free_port(), 9)).await;
    let Ended::Failed(fault) = ended else {
        panic!("{ended:?}")
    };
    assert!(fault.retry && fault.reason.contains("Connection refused"), "{fault:?}");
}

#[tokio::test]
async fn another_servers_host_key_is_a_lasting_fault() {
    let sshd = Sshd::start();
    let other = Sshd::start();
    let device = Device::new(&sshd);
    let ended = ends(&device, &landing(other.port, 9)).await;
    let Ended::Failed(fault) = ended else {
        panic!("{ended:?}")
    };
    assert!(!fault.retry && fault.reason.contains("pinned CA"), "{fault:?}");
    assert_eq!(other.commands(), "");
}

#[tokio::test]
async fn a_key_that_is_not_admitted_is_named() {
    let sshd = Sshd::start();
    let device = Device::new(&sshd);
    fs::write(sshd.path("authorized_keys"), "").unwrap();
    let ended = ends(&device, &landing(sshd.port, 9)).await;
    let Ended::Failed(fault) = ended else {
        panic!("{ended:?}")
    };
    assert!(fault.retry && fault.reason.contains("does not admit"), "{fault:?}");
}

#[tokio::test]
async fn a_refused_claim_brings_the_servers_own_words() {
    let sshd = Sshd::start();
    let device = Device::new(&sshd);
    sshd.answer_claims_with(r#"echo '{"refused":{"kind":"unknown-tunnel","message":"it is closed"}}'"#);
    let ended = ends(&device, &landing(sshd.port, 9)).await;
    let Ended::Refused(failure) = ended else {
        panic!("{ended:?}")
    };
    assert_eq!(failure.kind, FailureKind::UnknownTunnel);
    assert_eq!(failure.message(), "it is closed");
    assert_eq!(device.ssh_processes(), [] as [u32; 0]);
}

#[tokio::test]
async fn a_claim_without_a_useful_answer_fails() {
    let sshd = Sshd::start();
    let device = Device::new(&sshd);
    for script in ["exit 1", "echo nonsense", "yes | tr -d '\\n' | head -c 100000"] {
        sshd.answer_claims_with(script);
        let ended = ends(&device, &landing(sshd.port, 9)).await;
        let Ended::Failed(fault) = ended else {
            panic!("{ended:?}")
        };
        assert!(fault.reason.contains("the claim failed"), "{script}: {fault:?}");
    }
}

#[tokio::test]
async fn a_port_that_cannot_be_bound_fails_and_names_it() {
    let sshd = Sshd::start();
    let device = Device::new(&sshd);
    let _stranger = std::net::TcpListener::bind(("127.0.0.1", sshd.granted)).unwrap();
    let ended = ends(&device, &landing(sshd.port, 9)).await;
    let Ended::Failed(fault) = ended else {
        panic!("{ended:?}")
    };
    assert!(fault.reason.contains(&sshd.granted.to_string()), "{fault:?}");
    assert_eq!(device.ssh_processes(), [] as [u32; 0]);
}
