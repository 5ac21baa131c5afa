//! One resilient MQTT 5 session over mutual TLS, used by every rssh program, and the HTTPS by which each is let in.
//!
//! [`identity`] holds a program's key, certificate and CAs, [`https`] enrols it and [`renewal`] keeps it fresh; [`dial`]
//! connects, through a [`proxy`] where there is one; [`session`] keeps one connection to a broker, or one to each,
//! subscribes anew on each connect and says of every message what became of it.

mod acknowledge;
pub mod ask;
pub mod dial;
mod event;
pub mod examine;
pub mod files;
pub mod https;
pub mod identity;
pub mod life;
mod pace;
pub mod proxy;
mod relay;
pub mod renewal;
pub mod session;
mod settings;
pub mod toml_file;
mod verify;
pub mod way;

pub use event::{Delivery, Event, Message, Publish, PublishError};
pub use files::FileError;
pub use identity::{Identity, IdentityError, IdentityFiles};
pub use session::Session;
pub use settings::{Dial, Settings, Will, WillOf};
pub use way::Way;
