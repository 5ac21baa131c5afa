//! A request's course, without input or output: what to send and when, and what the answers mean.
//!
//! ```text
//! waiting for the broker --up--> sent --Accepted--> Answered --> Claimed --> over
//!        |                        | ^ repeated with the same id after 1 s, 2 s, 2 s ..
//!        +---- unreachable -------+---- nobody subscribes for a while, refused, deadline ----> over
//! ```
//! A shared subscription loses messages (a frozen server swallows its share), so a request is repeated with its id;
//! servers answer a repeated one with its first outcome. Answers can come twice, late and out of order: one whose
//! (epoch, rank) is below the highest seen says nothing new and is ignored.

use std::time::{Duration, Instant};

use rssh_mqtt::session::Down;
use rssh_mqtt::{Delivery, PublishError};
use rssh_proto::duration::Span;
use rssh_proto::id::Epoch;
use rssh_proto::payload::{
    ClosedTunnel, DeviceInfo, Operation, Rank, Reply, ReplyBody, Request, SharedName, TunnelInfo, TunnelTrace, V1,
    Which,
};
use rssh_proto::{Failure, FailureKind, ServerId, SessionId, TunnelId};

/// How long a request waits before it is first repeated; doubled with each further time up to [`LONGEST_PAUSE`]. That
/// is short enough for several tries by the deadline: where one of two servers is frozen, each has an even chance.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The same for a request that waits for a device to come, hours perhaps: a server has it in its store by then.
const WAITING_PAUSE: Duration = Duration::from_secs(30);
/// How long the broker may say that nobody subscribes to requests before it is believed: servers restart.
const UNHEARD: Duration = Duration::from_millis(1600);
const UNHEARD_PAUSE: Duration = Duration::from_millis(200);

/// What the loop around an [`Ask`] is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Publish(Request),
    /// The request has come further: tell the user.
    Progress(Rank, ServerId),
    Finish(Result<Answer, Failure>),
}

/// What a request brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Opened(TunnelInfo),
    Tunnels(Vec<TunnelInfo>),
    Closed(Vec<ClosedTunnel>),
    Devices(Vec<DeviceInfo>),
    Trace(Box<TunnelTrace>),
    Shared(SharedName),
    HostKeys(Vec<String>),
}

/// One request on its way.
#[derive(Debug)]
pub struct Ask {
    request: Request,
    deadline: Instant,
    timeout: Span,
    /// Brokers that have not been tried yet.
    untried: usize,
    up: bool,
    ever_up: bool,
    /// How many times it was published and may have been heard: a server may have made something of it.
    heard: u32,
    sent_at: Option<Instant>,
    repeat_at: Option<Instant>,
    pause: Duration,
    unheard_since: Option<Instant>,
    latest: Option<(Epoch, Rank)>,
    /// The tunnel that the answers speak of: another than the request's id where a live one is shared.
    tunnel: Option<TunnelId>,
    listed: Vec<TunnelInfo>,
    devices: Vec<DeviceInfo>,
    over: bool,
}

impl Ask {
    /// A request over any of so many brokers that must be over by `deadline`, which was so long when the user set it.
    pub fn new(op: Operation, session: SessionId, brokers: usize, timeout: Span, deadline: Instant) -> Self {
        let request = Request {
            v: V1,
            id: TunnelId::generate(),
            session,
            deadline_ms: 0,
            op,
        };
        Self {
            request,
            deadline,
            timeout,
            untried: brokers,
            up: false,
            ever_up: false,
            heard: 0,
            sent_at: None,
            repeat_at: None,
            pause: FIRST_PAUSE,
            unheard_since: None,
            latest: None,
            tunnel: None,
            listed: Vec::new(),
            devices: Vec::new(),
            over: false,
        }
    }

    /// Its id.
    pub fn id(&self) -> TunnelId {
        self.request.id
    }

    /// When it was first sent.
    pub fn sent_at(&self) -> Option<Instant> {
        self.sent_at
    }

    /// The same request once more, as if for the first time: servers answer it with what has become of it.
    #[must_use]
    pub fn again(&self) -> Self {
        let session = self.request.session.clone();
        let mut again = Self::new(self.request.op.clone(), session, 1, self.timeout, self.deadline);
        again.request.id = self.request.id;
        again
    }

    /// The id by which an open that was given up is closed: a server may be making its tunnel still.
    ///
    /// It is the request's own, also where the tunnel is another's: so a server knows whose hold ends, and a repeated
    /// close ends it once. An open that does not hold leaves a tunnel that it shares to those who do.
    pub fn left_behind(&self) -> Option<TunnelId> {
        let Operation::Open(open) = &self.request.op else {
            return None;
        };
        let tunnel = self.tunnel.unwrap_or(self.request.id);
        (self.heard > 0 && (open.hold || tunnel == self.request.id)).then_some(self.request.id)
    }

    /// When [`Self::handle_timeout`] is due; `None` once the request is over.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let repeat_at = self.repeat_at.filter(|_| self.up);
        let due = repeat_at.map_or(self.deadline, |at| at.min(self.deadline));
        (!self.over).then_some(due)
    }

    /// The session is up: what was on its way when the last one ended may be lost, so the request goes out (again).
    pub fn handle_up(&mut self, now: Instant) -> Vec<Command> {
        if self.over {
            return vec![];
        }
        self.up = true;
        self.ever_up = true;
        self.pause = FIRST_PAUSE;
        self.publish(now)
    }

    /// The session is down, or did not come up.
    pub fn handle_down(&mut self, down: &Down, _now: Instant) -> Vec<Command> {
        if self.over {
            return vec![];
        }
        self.up = false;
        self.repeat_at = None;
        self.untried = self.untried.saturating_sub(1);
        match down {
            Down::Certificate { .. } | Down::NotEnrolled { .. } => self.fail(
                FailureKind::WrongCertificate,
                format!("{down}; check ca, cert and key in the profile, or ask for a new certificate"),
            ),
            Down::Subscription { .. } => self.fail(FailureKind::WrongCertificate, another_users(&down.to_string())),
            // A session that was up comes back, by the deadline or not; one that never was has had its try everywhere.
            Down::Unreachable { .. } | Down::Refused { .. } if !self.ever_up && self.untried == 0 => self.fail(
                FailureKind::NobodyServing,
                format!("{down}; check the network, and brokers in the profile"),
            ),
            Down::Unreachable { .. } | Down::Refused { .. } => vec![],
        }
    }

    /// What the broker made of the latest publish.
    pub fn handle_delivery(&mut self, outcome: &Result<Delivery, PublishError>, now: Instant) -> Vec<Command> {
        if self.over {
            return vec![];
        }
        match outcome {
            // It proves nothing more: the subscriber may be frozen, or a monitor.
            Ok(Delivery::Accepted) => {
                self.unheard_since = None;
                vec![]
            }
            Ok(Delivery::NoSubscriber) if self.latest.is_some() => vec![],
            Ok(Delivery::NoSubscriber) => {
                self.heard = self.heard.saturating_sub(1);
                let since = *self.unheard_since.get_or_insert(now);
                if now.duration_since(since) >= UNHEARD {
                    return self.fail(
                        FailureKind::NobodyServing,
                        "no server takes requests now; try again, and tell your administrator if it goes on",
                    );
                }
                self.repeat_at = Some(now + UNHEARD_PAUSE);
                self.pause = FIRST_PAUSE;
                vec![]
            }
            Err(PublishError::Refused(reason)) => {
                let what = format!("the broker refused the request: {reason}");
                self.fail(FailureKind::WrongCertificate, another_users(&what))
            }
            Err(error @ PublishError::TooLarge(_)) => self.fail(FailureKind::Internal, error.to_string()),
            // The next connection, or the next repetition, sends it again.
            Err(PublishError::Away | PublishError::Full | PublishError::Lost) => vec![],
        }
    }

    /// An answer came.
    pub fn handle_reply(&mut self, reply: Reply, now: Instant) -> Vec<Command> {
        let key = (reply.epoch, reply.rank);
        if self.over || reply.request != self.request.id || Some(key) < self.latest {
            return vec![];
        }
        let further = Some(key) > self.latest;
        match reply.body {
            ReplyBody::Progress { tunnel, server } => {
                // A request is over with its outcome, whatever a rank claims; past `Final` nothing could follow.
                if !further || reply.rank == Rank::Final {
                    return vec![];
                }
                self.latest = Some(key);
                self.tunnel = Some(tunnel);
                // Someone is on it. Should that one die, another server takes the repeated request up.
                self.pause = self.longest_pause();
                self.repeat_at = Some(now + self.pause);
                vec![Command::Progress(reply.rank, server)]
            }
            ReplyBody::Opened(info) => match self.is_asked_for(&info) {
                Some(true) => {
                    self.tunnel = Some(info.tunnel);
                    self.finish(Ok(Answer::Opened(info)))
                }
                Some(false) => self.fail(
                    FailureKind::Internal,
                    format!("a server answered for {} {} instead", info.device, info.target),
                ),
                None => vec![],
            },
            ReplyBody::Tunnels { items, last } if self.request.op == Operation::List => {
                for item in items {
                    // Two servers may both answer a repeated request.
                    if !self.listed.iter().any(|known| known.tunnel == item.tunnel) {
                        self.listed.push(item);
                    }
                }
                if last {
                    let listed = std::mem::take(&mut self.listed);
                    self.finish(Ok(Answer::Tunnels(listed)))
                } else {
                    vec![]
                }
            }
            ReplyBody::Closed { items } if matches!(self.request.op, Operation::Close(_)) => {
                self.finish(Ok(Answer::Closed(items)))
            }
            ReplyBody::Devices { items, last } if self.request.op == Operation::Devices => {
                for item in items {
                    if !self.devices.iter().any(|known| known.device == item.device) {
                        self.devices.push(item);
                    }
                }
                if last {
                    let devices = std::mem::take(&mut self.devices);
                    self.finish(Ok(Answer::Devices(devices)))
                } else {
                    vec![]
                }
            }
            ReplyBody::Trace(trace)
                if matches!(self.request.op, Operation::Trace { .. } | Operation::Latest { .. }) =>
            {
                self.finish(Ok(Answer::Trace(Box::new(trace))))
            }
            ReplyBody::Shared(shared) if self.shares(&shared) => self.finish(Ok(Answer::Shared(shared))),
            ReplyBody::HostKeys { device, keys }
                if self.request.op == (Operation::HostKeys { device: device.clone() }) =>
            {
                self.finish(Ok(Answer::HostKeys(keys)))
            }
            ReplyBody::Tunnels { .. }
            | ReplyBody::Closed { .. }
            | ReplyBody::Devices { .. }
            | ReplyBody::Trace(_)
            | ReplyBody::Shared(_)
            | ReplyBody::HostKeys { .. } => vec![],
            // A server that refused has nothing left to close.
            ReplyBody::Failed(failure) => {
                self.heard = 0;
                self.finish(Err(failure))
            }
        }
    }

    /// The time of [`Self::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Command> {
        if self.over {
            vec![]
        } else if now >= self.deadline {
            let (kind, message) = self.overdue();
            self.fail(kind, message)
        } else if self.up && self.repeat_at.is_some_and(|at| at <= now) {
            self.publish(now)
        } else {
            vec![]
        }
    }

    /// Sends the request, or finds that its time is over.
    fn publish(&mut self, now: Instant) -> Vec<Command> {
        let left = self.deadline.saturating_duration_since(now).as_millis();
        if left == 0 {
            return self.handle_timeout(now);
        }
        self.request.deadline_ms = u32::try_from(left).unwrap_or(u32::MAX);
        self.repeat_at = Some(now + self.pause);
        self.pause = (self.pause * 2).min(self.longest_pause());
        self.heard += 1;
        self.sent_at = self.sent_at.or(Some(now));
        vec![Command::Publish(self.request.clone())]
    }

    fn longest_pause(&self) -> Duration {
        match &self.request.op {
            Operation::Open(open) if open.wait && self.latest.is_some() => WAITING_PAUSE,
            _ => LONGEST_PAUSE,
        }
    }

    /// Whether an opened tunnel is what was asked for; `None` when no tunnel was.
    fn is_asked_for(&self, info: &TunnelInfo) -> Option<bool> {
        match &self.request.op {
            Operation::Open(open) => Some(open.device == info.device && open.target == info.target),
            Operation::Name { tunnel } => Some(*tunnel == info.tunnel),
            Operation::Close(_)
            | Operation::List
            | Operation::Devices
            | Operation::Trace { .. }
            | Operation::Latest { .. }
            | Operation::Share { .. }
            | Operation::HostKeys { .. } => None,
        }
    }

    /// Whether a bearer name is what was asked for.
    fn shares(&self, shared: &SharedName) -> bool {
        matches!(self.request.op, Operation::Share { tunnel, .. } if tunnel == shared.tunnel)
    }

    /// Why the deadline was missed, by the last stage reached.
    fn overdue(&self) -> (FailureKind, String) {
        let timeout = self.timeout;
        let what = self.subject();
        if !self.ever_up {
            let message =
                format!("no connection to the broker within {timeout}; check the network, or raise --timeout");
            return (FailureKind::NobodyServing, message);
        }
        let stage = match self.latest.map(|(_, rank)| rank) {
            None => format!("no server has taken the request for {what} within {timeout}; try again"),
            Some(Rank::Accepted) => {
                format!("{what} has not answered within {timeout}, though a server has the request; try again")
            }
            Some(Rank::Answered) => {
                format!("{what} answered, but its ssh has not connected within {timeout}; raise --timeout")
            }
            Some(Rank::Claimed | Rank::Final) => {
                format!("{what} connected, but its tunnel was not ready within {timeout}; raise --timeout")
            }
        };
        (FailureKind::Deadline, stage)
    }

    /// What the request is about.
    fn subject(&self) -> String {
        match &self.request.op {
            Operation::Open(open) => open.device.to_string(),
            Operation::Close(close) => match &close.which {
                Which::Tunnel(tunnel) => format!("tunnel {tunnel}"),
                Which::Device { device, .. } => device.to_string(),
            },
            Operation::List => "the list of tunnels".to_owned(),
            Operation::Name { tunnel } | Operation::Trace { tunnel } | Operation::Share { tunnel, .. } => {
                format!("tunnel {tunnel}")
            }
            Operation::Latest { device, .. } => format!("the latest tunnel to {device}"),
            Operation::HostKeys { device } => format!("the host keys of {device}"),
            Operation::Devices => "the list of devices".to_owned(),
        }
    }

    fn fail(&mut self, kind: FailureKind, message: impl AsRef<str>) -> Vec<Command> {
        self.finish(Err(Failure::new(kind, message)))
    }

    fn finish(&mut self, outcome: Result<Answer, Failure>) -> Vec<Command> {
        self.over = true;
        vec![Command::Finish(outcome)]
    }
}

fn another_users(what: &str) -> String {
    format!("{what}; the certificate in the profile may be another user's: check user and cert there")
}

#[cfg(test)]
mod tests;
