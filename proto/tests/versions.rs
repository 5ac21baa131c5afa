//! Two versions side by side: `wire-1.jsonl` has what the first version writes, one message of each kind. It is never
//! changed; a later version adds a file of its own.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

use rssh_proto::claim::ClaimReply;
use rssh_proto::failure::FailureKind;
use rssh_proto::payload::{
    CloseOrder, DeviceEvent, DeviceStatus, OpenOrder, Reply, ReplyBody, Request, RouterStatus, ServerRequest,
    ServerStatus, decode,
};
use rssh_proto::registration::Registration;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const WIRE: &str = include_str!("wire-1.jsonl");

/// Each message of the file, and which kind it is.
fn messages() -> impl Iterator<Item = (String, Value)> {
    WIRE.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        (line["is"].as_str().unwrap().to_owned(), line["payload"].take())
    })
}

/// Reads a message with this version's types, and writes what was understood.
fn understood(kind: &str, payload: &Value) -> Result<Value, String> {
    fn by<T: DeserializeOwned + Serialize>(payload: &Value) -> Result<Value, String> {
        let read: T = decode(payload.to_string().as_bytes()).map_err(|error| error.to_string())?;
        Ok(serde_json::to_value(read).unwrap())
    }
    match kind {
        "request" => by::<Request>(payload),
        "reply" => by::<Reply>(payload),
        "open-order" => by::<OpenOrder>(payload),
        "close-order" => by::<CloseOrder>(payload),
        "device-status" => by::<DeviceStatus>(payload),
        "device-event" => by::<DeviceEvent>(payload),
        "server-status" => by::<ServerStatus>(payload),
        "server-request" => by::<ServerRequest>(payload),
        "router-status" => by::<RouterStatus>(payload),
        "registration" => by::<Registration>(payload),
        "claim-reply" => by::<ClaimReply>(payload),
        _ => panic!("no such kind: {kind}"),
    }
}

/// Whether all of `part` is in `whole`, which may have more.
fn has_all(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part
            .iter()
            .all(|(key, value)| whole.get(key).is_some_and(|found| has_all(found, value))),
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| has_all(whole, part))
        }
        // An empty list may be left out where it is the default, and so is no part.
        _ => whole == part,
    }
}

/// The message as a later version might write it: with something more in each object, but for those whose one key is the
/// name of a variant, and those whose keys are names of the operator's.
fn with_more(value: &mut Value, is_open: bool) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields.iter_mut() {
                let names = ["body", "event", "which", "tags"].contains(&key.as_str());
                with_more(field, !names);
            }
            if is_open {
                fields.insert("of-a-later-version".to_owned(), json!({"a": [1, null, "b"]}));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| with_more(item, true)),
        _ => {}
    }
}

#[test]
fn this_version_reads_what_the_first_one_writes_and_writes_all_that_it_reads() {
    for (kind, payload) in messages() {
        let ours = understood(&kind, &payload).unwrap_or_else(|error| panic!("{kind}: {error}: {payload}"));
        assert!(has_all(&ours, &payload), "{kind}: {payload}\nbecomes {ours}");
    }
}

#[test]
fn what_a_later_version_adds_to_a_message_is_ignored() {
    for (kind, payload) in messages() {
        let mut later = payload.clone();
        with_more(&mut later, kind != "claim-reply");
        assert_ne!(later, payload);
        assert_eq!(
            understood(&kind, &later),
            understood(&kind, &payload),
            "{kind}: {later}"
        );
    }
}

#[test]
fn a_message_of_a_kind_that_only_a_later_version_knows_is_an_error_and_no_other_message() {
    let mut unknown = 0;
    for (kind, payload) in messages() {
        let mut later = payload.clone();
        for key in ["op", "event", "state", "presence", "rank"] {
            if later[key].is_string() {
                later[key] = json!("of-a-later-version");
                unknown += 1;
                assert!(understood(&kind, &later).is_err(), "{kind}: {later}");
            }
        }
        later = payload;
        if later["v"].is_number() {
            later["v"] = json!(2);
            assert!(understood(&kind, &later).is_err(), "{kind}: {later}");
        }
    }
    assert!(unknown > 20);
}

#[test]
fn a_failure_that_only_a_later_version_names_still_ends_the_request() {
    let (_, mut reply) = messages()
        .find(|(_, payload)| payload["body"].get("failed").is_some())
        .unwrap();
    reply["body"]["failed"]["kind"] = json!("eaten-by-a-grue");
    let reply: Reply = decode(reply.to_string().as_bytes()).unwrap();
    let ReplyBody::Failed(failure) = reply.body else {
        panic!("{reply:?}")
    };
    assert_eq!(failure.kind, FailureKind::Internal);
    assert_eq!(failure.to_string(), "alice opens too much");
}
