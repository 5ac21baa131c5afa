//! Signals that ask the program to end.

use std::future::Future;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Error;

/// SIGHUP, SIGINT and SIGTERM, once they no longer end the program by themselves.
pub struct Signals {
    watched: [(u8, Signal); 3],
}

impl Signals {
    /// Takes the signals over.
    ///
    /// # Errors
    /// When the system has no room for the handlers.
    pub fn watch() -> Result<Self, Error> {
        let watch = |number: u8| match signal(SignalKind::from_raw(i32::from(number))) {
            Ok(signal) => Ok((number, signal)),
            Err(error) => Err(Error::internal(format!("cannot watch for signals: {error}"))),
        };
        Ok(Self {
            watched: [watch(1)?, watch(2)?, watch(15)?],
        })
    }

    /// The outcome of `work`, or [`Error::Signal`] as soon as one comes; `work` is dropped then.
    pub async fn or<T>(&mut self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let [(hup, on_hup), (int, on_int), (term, on_term)] = &mut self.watched;
        tokio::select! {
            outcome = work => outcome,
            _ = on_hup.recv() => Err(Error::Signal(*hup)),
            _ = on_int.recv() => Err(Error::Signal(*int)),
            _ = on_term.recv() => Err(Error::Signal(*term)),
        }
    }
}
