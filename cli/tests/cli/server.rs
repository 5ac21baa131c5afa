//! A peer that answers requests as a server does.

use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rssh_mqtt::{Dial, Event, IdentityFiles, Publish, Session, Settings};
use rssh_proto::id::Epoch;
use rssh_proto::payload::{self, OpenRequest, Operation, Rank, Reply, ReplyBody, Request, TunnelInfo, TunnelState, V1};
use rssh_proto::topic::{Topic, filter};
use rssh_proto::{Failure, FailureKind, HostPort, TunnelId};
use tokio::sync::oneshot;

use crate::pki::identity;

/// What is answered to a request; `nth` counts the requests from 0.
pub(crate) type Answers = Box<dyn Fn(&Request, usize) -> Vec<Reply> + Send>;

pub(crate) struct Server {
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts it; returns when it takes requests.
    pub(crate) fn start(broker: &HostPort, files: &IdentityFiles, answers: Answers) -> Self {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel();
        let (up, is_up) = std::sync::mpsc::channel();
        let settings = Settings {
            brokers: vec![broker.clone()],
            tls: Arc::new(identity(files).client_config().unwrap()),
            cn: "s1".into(),
            keep_alive: Duration::from_secs(30),
            inflight: 16,
            queue: 64,
            subscriptions: vec![filter::REQUESTS.into()],
            will: None,
            reconnect: (Duration::from_millis(10), Duration::from_millis(100)),
            dial: Dial::default(),
        };
        let seen = requests.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let (session, mut events, driver) = Session::new(settings);
                let answer = async {
                    while let Some(event) = events.recv().await {
                        match event {
                            Event::Up => up.send(()).unwrap_or_default(),
                            Event::Down(down) => panic!("{down}"),
                            Event::Message(message) => {
                                let Some(Topic::UserRequest(user)) = Topic::parse(&message.topic) else {
                                    panic!("{}", message.topic);
                                };
                                let request: Request = payload::decode(&message.payload).unwrap();
                                let nth = {
                                    let mut seen = seen.lock().unwrap();
                                    seen.push(request.clone());
                                    seen.len() - 1
                                };
                                let topic = Topic::UserReply(user, request.session.clone());
                                for reply in answers(&request, nth) {
                                    let _ = session.send(Publish::new(&topic, payload::encode(&reply)));
                                }
                            }
                        }
                    }
                };
                tokio::select! {
                    () = driver => {}
                    () = answer => {}
                    _ = stopped => {}
                }
            });
        });
        is_up.recv().expect("the server comes up");
        Self {
            requests,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// The requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The tunnels that were asked to be closed.
    pub(crate) fn closes(&self) -> Vec<payload::CloseRequest> {
        self.requests()
            .into_iter()
            .filter_map(|request| match request.op {
                Operation::Close(close) => Some(close),
                _ => None,
            })
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) fn reply(request: &Request, epoch: u64, rank: Rank, body: ReplyBody) -> Reply {
    Reply {
        v: V1,
        request: request.id,
        epoch: Epoch(epoch),
        rank,
        body,
    }
}

/// The stages of an open, and its tunnel by the name `host`; closes are confirmed.
pub(crate) fn opens(host: &'static str) -> Answers {
    Box::new(move |request, _| match &request.op {
        Operation::Open(open) => {
            let progress = |epoch, rank| {
                let server = "s1".parse().unwrap();
                let tunnel = request.id;
                reply(request, epoch, rank, ReplyBody::Progress { tunnel, server })
            };
            let opened = ReplyBody::Opened(info(request.id, open, host));
            vec![
                progress(0, Rank::Accepted),
                progress(0, Rank::Answered),
                progress(1, Rank::Claimed),
                reply(request, 1, Rank::Final, opened),
            ]
        }
        _ => vec![reply(request, 0, Rank::Final, ReplyBody::Closed { items: vec![] })],
    })
}

/// Opens at once, and has heard from the device, when it is asked again, that nothing answers at the target.
pub(crate) fn refuses_the_target() -> Answers {
    let open = opens("s1-20000-1999999000-0.proxy.test");
    Box::new(move |request, nth| match &request.op {
        Operation::Name { .. } => {
            let failure = Failure::new(
                FailureKind::TargetRefused,
                "nothing answers at localhost:8080 of device-1",
            );
            vec![reply(request, 1, Rank::Final, ReplyBody::Failed(failure))]
        }
        _ => open(request, nth),
    })
}

pub(crate) fn info(tunnel: TunnelId, open: &OpenRequest, host: &str) -> TunnelInfo {
    TunnelInfo {
        tunnel,
        device: open.device.clone(),
        target: open.target.clone(),
        state: TunnelState::Active,
        server: Some("s1".parse().unwrap()),
        host: Some(host.to_owned()),
        port: Some(443),
        expires_at: 2_000_000_000,
        host_expires_at: Some(1_999_999_000),
        host_valid_s: Some(120),
    }
}
