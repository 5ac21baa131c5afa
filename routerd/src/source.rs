//! Where the registry is read: Redis and PostgreSQL, each by a task of its own, so that one that hangs delays nobody.

pub mod postgres;
pub mod redis;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use rssh_proto::{ServerId, UserId};
use tokio::sync::Notify;

use crate::route::{Row, Source};

/// What a source has to say.
#[derive(Debug)]
pub enum Reading {
    /// Some of the entries that a look at everything finds: not even as text are all of them ever here at once.
    Page(Source, Vec<(ServerId, String)>),
    /// Which servers a look into Redis has found; their entries have come before.
    Redis(BTreeSet<ServerId>),
    /// One entry that has changed.
    Changed(ServerId, String),
    /// Every row in PostgreSQL; the entries have come before. And which servers were known when the look began.
    Database {
        rows: Vec<Row>,
        known_before: BTreeSet<ServerId>,
    },
    /// The users that PostgreSQL calls revoked, or why it does not say.
    Revoked(Result<BTreeSet<UserId>, String>),
    /// No answer.
    Away { source: Source, reason: String },
}

/// Entries of a page.
const PAGE: usize = 50;

/// Servers and addresses that users are led to, or are about to be: a server that moves is there twice for a moment.
pub type Led = BTreeSet<(ServerId, IpAddr)>;

/// What HAProxy was told, for others to read.
#[derive(Default)]
struct Told {
    /// Looks into PostgreSQL so far.
    told: u64,
    places: Led,
    /// Since it was last written down.
    changed: bool,
}

/// What the tasks need of the daemon.
#[derive(Clone, Default)]
pub struct Shared {
    known: Arc<Mutex<BTreeSet<ServerId>>>,
    led: Arc<Mutex<Told>>,
    /// Asks for a look into PostgreSQL now.
    pub look: Arc<Notify>,
}

impl Shared {
    /// The servers that are known now.
    pub fn known(&self) -> BTreeSet<ServerId> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where users are led, and after how many looks into PostgreSQL that is.
    pub fn led(&self) -> (u64, Led) {
        let led = self.led.lock().unwrap_or_else(PoisonError::into_inner);
        (led.told, led.places.clone())
    }

    /// Says where users are led.
    pub fn set_led(&self, places: Led) {
        let mut led = self.led.lock().unwrap_or_else(PoisonError::into_inner);
        led.changed |= led.places != places;
        led.places = places;
    }

    /// Says that HAProxy was told of what so many looks into PostgreSQL found; a change is written down at once.
    pub fn set_told(&self, looks: u64) {
        let mut led = self.led.lock().unwrap_or_else(PoisonError::into_inner);
        led.told = looks;
        if std::mem::take(&mut led.changed) {
            self.look.notify_one();
        }
    }

    /// Says which servers are known now.
    pub fn set_known(&self, known: BTreeSet<ServerId>) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }
}
