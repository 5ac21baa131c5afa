//! One resilient MQTT 5 session over mutual TLS, used by every rssh program.
//!
//! [`identity`] holds a program's key, certificate and CAs; [`session`] keeps one connection to a broker, subscribes
//! anew on each connect and says of every message what became of it.

pub mod identity;
mod pace;
pub mod session;

pub use identity::{Identity, IdentityError, IdentityFiles};
pub use session::{Delivery, Event, Message, Publish, PublishError, Session, Settings, Will, WillOf};
