//! Ids, targets and tags: what is taken is of letters, digits and few marks, and reads back the same.
#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use libfuzzer_sys::fuzz_target;
use rssh_proto::{Account, DeviceId, GroupId, HostPort, ServerId, SessionId, Tag, Target, TunnelId, UserId};

fn harmless<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let shown = value.to_string();
        assert!(!shown.is_empty() && shown.len() <= 300, "{shown:?}");
        assert!(!shown.starts_with('-'), "{shown:?}");
        assert!(shown.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:[]=".contains(&b)), "{shown:?}");
        assert!(shown.parse::<T>().is_ok_and(|again| again == value), "{shown:?}");
    }
}

fuzz_target!(|text: &str| {
    harmless::<DeviceId>(text);
    harmless::<UserId>(text);
    harmless::<ServerId>(text);
    harmless::<SessionId>(text);
    harmless::<TunnelId>(text);
    harmless::<GroupId>(text);
    harmless::<Account>(text);
    harmless::<Target>(text);
    harmless::<HostPort>(text);
    harmless::<Tag>(text);
});
