//! Where the registry is read: Redis and PostgreSQL, each by a task of its own, so that one that hangs delays nobody.

pub mod postgres;
pub mod redis;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use rssh_proto::ServerId;
use tokio::sync::Notify;

use crate::route::{Row, Source};

/// What a source has to say.
#[derive(Debug)]
pub enum Reading {
    /// Every entry in Redis.
    Redis(Vec<(ServerId, String)>),
    /// One entry that has changed.
    Changed(ServerId, String),
    /// Every row in PostgreSQL, with the row's entry; and which servers were known when the look began.
    Database {
        rows: Vec<(Row, Option<String>)>,
        known_before: BTreeSet<ServerId>,
    },
    /// No answer.
    Away { source: Source, reason: String },
}

/// What the tasks need of the daemon.
#[derive(Clone, Default)]
pub struct Shared {
    known: Arc<Mutex<BTreeSet<ServerId>>>,
    /// Asks for a look into PostgreSQL now.
    pub look: Arc<Notify>,
}

impl Shared {
    /// The servers that are known now.
    pub fn known(&self) -> BTreeSet<ServerId> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says which servers are known now.
    pub fn set_known(&self, known: BTreeSet<ServerId>) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }
}
