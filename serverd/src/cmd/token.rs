//! Bearer tokens of the API.

use anyhow::{Result, bail};
use rssh_proto::id::random_hex;
use serde_json::json;

use crate::args::Token;
use crate::config::Config;
use crate::store::Store;
use crate::token::ApiToken;

/// How long a token may live, in seconds: a year.
const LONGEST_S: u64 = 366 * 86_400;

pub(super) async fn run(command: Token) -> Result<()> {
    match command {
        Token::Add {
            at,
            user,
            scope,
            expires,
            note,
        } => {
            let lives = expires.duration().as_secs();
            if !(1..=LONGEST_S).contains(&lives) {
                bail!("a token lives from 1s to 366d, not {expires}");
            }
            let note: String = rssh_proto::text::sanitize(&note.unwrap_or_default(), 200);
            let store = Store::new(&Config::load(&at.config)?.database)?;
            let (id, token) = (random_hex::<4>(), ApiToken::generate());
            store
                .add_api_token(&id, &token, &user, &scope, &note, lives as f64)
                .await?;
            eprintln!("token {id} of {user}; it is shown this once:");
            println!("{}", token.reveal());
        }
        Token::List { at, user, json } => {
            let store = Store::new(&Config::load(&at.config)?.database)?;
            for row in store.api_tokens(user.as_ref()).await? {
                let scopes: Vec<&str> = row.scopes.iter().map(|scope| scope.name()).collect();
                if json {
                    let line = json!({
                        "id": row.id, "user": row.user, "scopes": scopes, "note": row.note,
                        "expires_at": row.expires_at, "last_used_at": row.last_used_at, "revoked": row.revoked,
                    });
                    println!("{line}");
                } else {
                    let state = match row.expires_at - crate::clock::now().0 {
                        _ if row.revoked => "revoked".to_owned(),
                        left if left <= 0 => "expired".to_owned(),
                        left => format!("{} d left", left / 86_400),
                    };
                    println!(
                        "{:<10} {:<16} {:<10} {state:<10} {}",
                        row.id,
                        row.user,
                        scopes.join(","),
                        row.note
                    );
                }
            }
        }
        Token::Revoke { id, at } => {
            let store = Store::new(&Config::load(&at.config)?.database)?;
            if !store.revoke_api_token(&id).await? {
                bail!("no good token {id}; rssh-serverd token list shows them");
            }
        }
    }
    Ok(())
}
