//! HAProxy's map files: what becomes of any rows that an operator or a database may have.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rssh_proto::UserId;
use rssh_routerd::render;
use rssh_routerd::desired::{Rows, Serial};

fuzz_target!(|text: &str| {
    let mut rows = Rows::new();
    for word in text.lines() {
        if let Ok(user) = word.parse::<UserId>() {
            rows.insert(user.to_string(), "1".to_owned());
        }
        // A serial number is checked for its form only; it is a key of the next map.
        let _ = word.parse::<Serial>();
    }
    let map = render::map(&rows);
    assert_eq!(map.lines().count(), rows.len());
    for line in map.lines() {
        let (key, value) = line.split_once(' ').expect("two words");
        assert_eq!(rows.get(key).map(String::as_str), Some(value));
        assert!(!key.starts_with('#') && !line.contains(';'), "{line:?}");
    }
    let values = [("a", text.to_owned())];
    // Values are never looked into: braces in one are text.
    assert_eq!(render::substitute("<{{a}}>", &values).expect("it matches"), format!("<{text}>"));
    let _ = render::substitute(text, &[]);
    let _ = rssh_routerd::log::event(text);
});
