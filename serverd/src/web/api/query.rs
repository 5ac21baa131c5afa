//! What stands in a request's path, query and head, or a problem that says what is wrong with it.

use axum::extract::{FromRequestParts, Path};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use ring::digest::{SHA256, digest};
use rssh_proto::{Tag, TunnelId, UserId};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::web::problem::Problem;

/// How many of a list are told at once, unless asked otherwise and at most.
const PAGE: u16 = 100;
const LONGEST_PAGE: u16 = 500;
/// The longest idempotency key, in bytes.
const LONGEST_KEY: usize = 255;

/// The parameters of a request's query.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        axum::extract::Query::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|rejection| Problem::bad_request(format!("the query is not valid: {}", rejection.body_text())))
    }
}

/// The one variable of a path, read.
pub struct Named<T>(pub T);

impl<S: Send + Sync, T: std::str::FromStr<Err: std::fmt::Display>> FromRequestParts<S> for Named<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| Problem::bad_request("the path is not valid UTF-8"))?;
        text.parse()
            .map(Self)
            .map_err(|error: T::Err| Problem::bad_request(error.to_string()))
    }
}

/// Which part of a list.
#[derive(Debug, Default, Deserialize)]
pub struct Page {
    limit: Option<u16>,
    after: Option<String>,
}

impl Page {
    /// So many at most, after the one of this key.
    pub fn new(limit: Option<u16>, after: Option<String>) -> Self {
        Self { limit, after }
    }

    /// The items after the given one, and what names those that follow. The items are in the order of their keys.
    ///
    /// # Errors
    /// When the page is longer than they may be.
    pub fn of<T>(&self, items: Vec<T>, key: impl Fn(&T) -> String) -> Result<(Vec<T>, Option<String>), Problem> {
        let limit = self.limit.unwrap_or(PAGE);
        if !(1..=LONGEST_PAGE).contains(&limit) {
            return Err(Problem::bad_request(format!("limit is not from 1 to {LONGEST_PAGE}")));
        }
        let mut left = items
            .into_iter()
            .filter(|item| self.after.as_ref().is_none_or(|after| key(item) > *after));
        let page: Vec<T> = left.by_ref().take(limit.into()).collect();
        let next = left.next().and(page.last()).map(key);
        Ok((page, next))
    }
}

/// Reads the tags of a query: `site=berlin`, several separated by commas.
///
/// # Errors
/// When one is none.
pub fn tags(text: Option<&str>) -> Result<Vec<Tag>, Problem> {
    text.into_iter()
        .flat_map(|text| text.split(','))
        .map(|tag| tag.parse().map_err(|error| Problem::bad_request(format!("{error}"))))
        .collect()
}

/// The id of a request, from its `Idempotency-Key`; a fresh one without it. A UUID stands for itself.
///
/// # Errors
/// When the key is none.
pub fn request_id(headers: &HeaderMap, user: &UserId) -> Result<TunnelId, Problem> {
    let Some(key) = headers.get("idempotency-key") else {
        return Ok(TunnelId::generate());
    };
    let key = key.to_str().ok().map(str::trim);
    let Some(key) = key.filter(|key| (1..=LONGEST_KEY).contains(&key.len())) else {
        return Err(Problem::bad_request(format!(
            "Idempotency-Key is not 1 to {LONGEST_KEY} printable characters"
        )));
    };
    if let Ok(id) = key.parse() {
        return Ok(id);
    }
    // Others' keys are others' requests.
    let sum = digest(&SHA256, format!("{user}\n{key}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&sum.as_ref()[..16]);
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_told_in_pages_that_name_the_next() {
        let page = |limit, after: Option<&str>| {
            let page = Page {
                limit,
                after: after.map(Into::into),
            };
            page.of(vec!["a", "b", "c"], |item| (*item).to_owned())
        };
        assert_eq!(page(Some(2), None).unwrap(), (vec!["a", "b"], Some("b".into())));
        assert_eq!(page(Some(2), Some("b")).unwrap(), (vec!["c"], None));
        assert_eq!(page(Some(3), None).unwrap().1, None);
        assert_eq!(page(None, Some("zz")).unwrap(), (vec![], None));
        assert!(page(Some(0), None).is_err() && page(Some(501), None).is_err());
    }

    #[test]
    fn the_same_key_of_the_same_user_is_the_same_request() {
        let id = |key: &str, user: &str| {
            let headers = HeaderMap::from_iter([("idempotency-key".parse().unwrap(), key.parse().unwrap())]);
            request_id(&headers, &user.parse().unwrap()).ok()
        };
        let uuid = "0198b2f0-0000-7000-8000-000000000001";
        assert_eq!(id(uuid, "alice").unwrap().to_string(), uuid);
        assert_eq!(id("job 7", "alice"), id("job 7", "alice"));
        assert_ne!(id("job 7", "alice"), id("job 7", "bob"));
        assert_ne!(id("job 7", "alice"), id("job 8", "alice"));
        assert_eq!(id("", "alice"), None);
        assert_eq!(id(&"x".repeat(256), "alice"), None);
        let none = request_id(&HeaderMap::new(), &"alice".parse().unwrap()).unwrap();
        assert_ne!(none, request_id(&HeaderMap::new(), &"alice".parse().unwrap()).unwrap());
    }
}
