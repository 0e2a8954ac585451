//! Calls to the server: JSON over the site's TLS, bounded, with answers that people can act on.

use std::time::Duration;

use cairn_array::{
    tls::{Member, url},
    wire::{MAX_BODY_BYTES, MemberState, SYNC_HOLD},
};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// For a call that the server answers when it has something to say.
const HELD: Duration = Duration::from_secs(SYNC_HOLD.as_secs() + 15);
/// For a call that it answers at once; an assignment or a list of holdings can be large.
const PROMPT: Duration = Duration::from_secs(60);
/// The most of an error's body that is read.
const MAX_PROBLEM_BYTES: usize = 64 << 10;

/// How long a call may take.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    Prompt,
    /// The server holds the call until something is new.
    Held,
}

/// The way to the server.
#[derive(Clone, Debug)]
pub struct ServerLink {
    client: Client,
    /// Bearer of a target's session.
    session: Option<String>,
}

/// A call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error(
        "the server cannot be reached; check its address and that `cairn-server serve` runs there"
    )]
    Unreachable(#[source] reqwest::Error),
    #[error("the server refused ({status}): {problem}")]
    Refused { status: StatusCode, code: Option<String>, problem: String },
    #[error("the server's answer broke off")]
    BrokeOff(#[source] reqwest::Error),
    #[error("the server's answer is longer than {limit} bytes")]
    TooLong { limit: usize },
    #[error("the server's answer is not understood; are server and agent of the same version?")]
    NotUnderstood(#[source] serde_json::Error),
}

impl CallError {
    /// How the site has dismissed this member, when that is why it refused.
    #[must_use]
    pub fn dismissal(&self) -> Option<MemberState> {
        match self {
            Self::Refused { code: Some(code), .. } => match code.as_str() {
                "agent_revoked" => Some(MemberState::Revoked),
                "agent_left" => Some(MemberState::Left),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the server was there and said no: asking again the same way will not help.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.is_client_error()
            && !matches!(*status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS))
    }
}

/// RFC 9457, as far as it is shown.
#[derive(Deserialize)]
struct Problem {
    /// Stable; for programs.
    code: Option<String>,
    title: Option<String>,
    detail: Option<String>,
}

impl ServerLink {
    #[must_use]
    pub const fn new(client: Client) -> Self {
        Self { client, session: None }
    }

    /// The same link, speaking for a target's session.
    #[must_use]
    pub fn with_session(&self, session: String) -> Self {
        Self { client: self.client.clone(), session: Some(session) }
    }

    /// POSTs JSON and reads JSON.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn post<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        path: &str,
        request: &Q,
        patience: Patience,
    ) -> Result<A, CallError> {
        let call = self.call(Method::POST, path, patience).json(request);
        understand(&read(call, MAX_BODY_BYTES).await?)
    }

    /// POSTs JSON; the answer has no body that matters.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn tell<Q: Serialize + Sync>(
        &self,
        path: &str,
        request: &Q,
    ) -> Result<(), CallError> {
        let call = self.call(Method::POST, path, Patience::Prompt).json(request);
        read(call, MAX_BODY_BYTES).await.map(drop)
    }

    /// GETs JSON.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn get<A: DeserializeOwned>(
        &self,
        path: &str,
        patience: Patience,
    ) -> Result<A, CallError> {
        understand(&read(self.call(Method::GET, path, patience), MAX_BODY_BYTES).await?)
    }

    /// GETs a binary document of at most `limit` bytes.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn get_bytes(&self, path: &str, limit: usize) -> Result<Vec<u8>, CallError> {
        read(self.call(Method::GET, path, Patience::Prompt), limit).await
    }

    fn call(&self, method: Method, path: &str, patience: Patience) -> RequestBuilder {
        let timeout = match patience {
            Patience::Prompt => PROMPT,
            Patience::Held => HELD,
        };
        let call = self.client.request(method, url(&Member::Server, path)).timeout(timeout);
        match &self.session {
            Some(session) => call.bearer_auth(session),
            None => call,
        }
    }
}

fn understand<A: DeserializeOwned>(body: &[u8]) -> Result<A, CallError> {
    serde_json::from_slice(body).map_err(CallError::NotUnderstood)
}

async fn read(call: RequestBuilder, limit: usize) -> Result<Vec<u8>, CallError> {
    let answer = call.send().await.map_err(CallError::Unreachable)?;
    let status = answer.status();
    if status.is_success() {
        return body(answer, limit).await;
    }
    let body = body(answer, MAX_PROBLEM_BYTES).await.unwrap_or_default();
    let (code, problem) = problem(&body);
    Err(CallError::Refused { status, code, problem })
}

async fn body(mut answer: reqwest::Response, limit: usize) -> Result<Vec<u8>, CallError> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(CallError::BrokeOff)? {
        if body.len() + chunk.len() > limit {
            return Err(CallError::TooLong { limit });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The code of a problem document, and what it says to people.
fn problem(body: &[u8]) -> (Option<String>, String) {
    let said: Option<Problem> = serde_json::from_slice(body).ok();
    let (code, text) = said.map_or((None, None), |said| (said.code, said.detail.or(said.title)));
    let text = text.unwrap_or_else(|| "it did not say why; its log does".to_owned());
    // It goes to a terminal.
    (code, text.replace(|c: char| c.is_control(), " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_document_is_shown_by_its_detail() {
        let body = br#"{"type":"about:blank","title":"Gone","detail":"this token was used; make another","code":"x"}"#;
        let detail = "this token was used; make another".to_owned();
        assert_eq!(problem(body), (Some("x".to_owned()), detail));
        assert_eq!(problem(br#"{"title":"Gone\u001b[2J"}"#), (None, "Gone [2J".to_owned()));
        assert!(problem(b"<html>").1.contains("log"));
    }
}
