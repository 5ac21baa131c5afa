//! The store on a real PostgreSQL: what must hold whatever the daemons do.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod audit;
mod authorization;
mod forget;
mod history;
mod postgres;
mod presence;
mod tunnels;

use std::sync::Arc;

use postgres::Postgres;
use rssh_proto::payload::{CloseRequest, OpenRequest, Which};
use rssh_proto::{DeviceId, FailureKind, ServerId, SessionId, Target, TunnelId, UserId};
use rssh_serverd::process::Process;
use rssh_serverd::store::{
    Asker, Bounds, ClaimOutcome, Devices, Grant, Grantee, Kind, Opening, Quotas, SessionMark, Store, Terms, Tunnel,
};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIF3b4OqFP4OqF3b4OqFP4OqF3b4OqFP4OqF3b4OqFP4O";
const TTL_S: u32 = 3600;
const PATIENT_MS: u32 = 15_000;

/// A database with alice, device-1 and two servers; alice may open everything on device-1.
struct World {
    _postgres: Arc<Postgres>,
    store: Store,
}

impl World {
    async fn new() -> Self {
        Self::with_url().await.0
    }

    /// The same, and how to reach the database as its owner.
    async fn with_url() -> (Self, String) {
        let postgres = Postgres::shared();
        let (store, url) = postgres.database().await;
        for (kind, name) in [
            (Kind::User, "alice"),
            (Kind::User, "bob"),
            (Kind::Server, "s1"),
            (Kind::Server, "s2"),
        ] {
            store.add_identity(kind, name).await.unwrap();
        }
        store.add_device(&device(), &KEY.parse().unwrap()).await.unwrap();
        grant(&store, "alice", &Devices::One(device()), &[]).await;
        let world = Self {
            _postgres: postgres,
            store,
        };
        (world, url)
    }

    /// Asks for a tunnel to the device's ssh.
    async fn ask(&self, asker: &Asker, change: impl FnOnce(&mut OpenRequest)) -> Opening {
        let mut request = OpenRequest::new(device(), Target::ssh());
        change(&mut request);
        self.store.open(asker, &request, &bounds(PATIENT_MS)).await.unwrap()
    }

    /// A new tunnel of alice's.
    async fn requested(&self) -> TunnelId {
        let asker = asker("alice");
        match self.ask(&asker, |request| request.new = true).await {
            Opening::New(tunnel) => tunnel.id,
            other => panic!("{other:?}"),
        }
    }

    async fn claim(&self, server: &str, port: u16, tunnel: TunnelId) -> ClaimOutcome {
        self.store
            .claim(&server_id(server), port, &device(), tunnel, &mark(i32::from(port)), 60)
            .await
            .unwrap()
    }

    async fn granted(&self, server: &str, port: u16, tunnel: TunnelId) -> Grant {
        match self.claim(server, port, tunnel).await {
            ClaimOutcome::Granted(grant) => *grant,
            ClaimOutcome::Refused(failure) => panic!("{failure}"),
        }
    }

    async fn tunnel(&self, id: TunnelId) -> Tunnel {
        self.store.tunnel_of(&user("alice"), id).await.unwrap().unwrap()
    }
}

/// Lets a user open targets; all of them without any.
async fn grant(store: &Store, name: &str, devices: &Devices, targets: &[&str]) -> i64 {
    let targets: Vec<Target> = targets.iter().map(|target| target.parse().unwrap()).collect();
    let holder = Grantee::User(user(name));
    let ids = store
        .add_grant(&holder, devices, &targets, &Terms::default())
        .await
        .unwrap();
    ids[0]
}

fn bounds(deadline_ms: u32) -> Bounds {
    Bounds {
        ttl_s: TTL_S,
        deadline_ms,
        quotas: Quotas {
            user_tunnels: 1000,
            user_opens_per_minute: 1000,
            device_tunnels: 1000,
            device_opens_per_minute: 1000,
        },
    }
}

fn device() -> DeviceId {
    "device-1".parse().unwrap()
}

fn user(name: &str) -> UserId {
    name.parse().unwrap()
}

fn server_id(name: &str) -> ServerId {
    name.parse().unwrap()
}

fn asker(name: &str) -> Asker {
    Asker {
        user: user(name),
        session: SessionId::generate(),
        request: TunnelId::generate(),
    }
}

/// A request for one more tunnel to the device's ssh, whatever there is.
fn another() -> OpenRequest {
    OpenRequest {
        new: true,
        ..OpenRequest::new(device(), Target::ssh())
    }
}

fn mark(pid: i32) -> SessionMark {
    SessionMark {
        process: Process { pid, start: 7 },
        boot_id: "boot".to_owned(),
    }
}

fn close(which: Which, force: bool) -> CloseRequest {
    CloseRequest { which, force }
}

fn refused(outcome: ClaimOutcome) -> FailureKind {
    match outcome {
        ClaimOutcome::Refused(failure) => failure.kind,
        ClaimOutcome::Granted(grant) => panic!("{grant:?}"),
    }
}
