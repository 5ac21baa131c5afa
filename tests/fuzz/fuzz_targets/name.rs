//! Signed names: what is read is exactly what is written, and nothing that was not signed is admitted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rssh_proto::name::{NameMaster, SignedName};

fuzz_target!(|text: &str| {
    let Ok(name) = text.parse::<SignedName>() else { return };
    let domain = "proxy.test".parse().expect("a domain");
    let host = name.host(&domain);
    let label = host.strip_suffix(".proxy.test").expect("a host of the domain");
    assert!(label.len() <= 63, "{label:?}");
    assert!(label.parse::<SignedName>().is_ok_and(|again| again == name), "{label:?}");
    // Nobody knows a key that has just been drawn.
    let key = NameMaster::generate().key(&"s1".parse().expect("a server"));
    assert!(!name.admits(&key, None, 0), "{label:?}");
});
