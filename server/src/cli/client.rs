//! The client side of the API: finds the server, shows its token, turns problem documents into errors.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use cairn_array::tls::{self, Fingerprint, Member, NameTable, Token, Trust};
use reqwest::{Method, RequestBuilder, Response};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    api::error::Problem,
    serve::{ServerFile, server_file},
    site::secrets,
};

/// The port of a URL that names none.
const DEFAULT_PORT: u16 = 8440;

/// Which server is meant.
#[derive(Clone, Debug, clap::Args)]
pub struct Remote {
    /// The data folder of a server on this machine
    #[arg(
        long,
        global = true,
        env = "CAIRN_DATA_DIR",
        default_value = "./cairn-data",
        value_name = "DIR"
    )]
    data_dir: PathBuf,
    /// A server elsewhere, https://HOST:PORT
    #[arg(long, global = true, env = "CAIRN_SERVER", value_name = "URL", requires = "token_file")]
    server: Option<String>,
    /// The file with an API token for it
    #[arg(long, global = true, env = "CAIRN_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Talks to one server.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    token: String,
    url: String,
}

/// The server's answer was a problem document.
#[derive(Debug, thiserror::Error)]
#[error("{}", problem.detail)]
pub struct Refused {
    /// What it said.
    pub problem: Problem,
}

impl Remote {
    /// A client for that server.
    ///
    /// # Errors
    /// When no server is known or its token cannot be read.
    pub fn connect(&self) -> anyhow::Result<Client> {
        match (&self.server, &self.token_file) {
            (Some(url), Some(file)) => Client::new(url, &token_in(file)?),
            (None, Some(file)) => Client::new(&self.local()?.url, &token_in(file)?),
            (_, None) => Client::new(
                &self.local()?.url,
                &token_in(&secrets::cli_token_file(&self.data_dir))?,
            ),
        }
    }

    fn local(&self) -> anyhow::Result<ServerFile> {
        let path = server_file(&self.data_dir);
        let found = fs::read(&path);
        if found.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
            bail!(
                "the data folder {} belongs to another user: run this as root",
                self.data_dir.display()
            );
        }
        let text = found.with_context(|| {
            format!(
                "no server has run with data folder {}: name its folder with --data-dir, or a server elsewhere with \
                 --server and --token-file",
                self.data_dir.display()
            )
        })?;
        serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))
    }
}

fn token_in(path: &Path) -> anyhow::Result<Token> {
    let text = secrets::read_secret(path)?;
    text.parse().with_context(|| format!("read the token in {}", path.display()))
}

/// Host and port of `https://HOST[:PORT][/]`.
fn host_and_port(url: &str) -> anyhow::Result<(String, u16)> {
    let rest = url.strip_prefix("https://").context("a server's URL starts with https://")?;
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.is_empty() || authority.contains(['/', '?', '#', '@']) {
        bail!("a server's URL is https://HOST:PORT, without a path");
    }
    if let Ok(addr) = authority.parse::<SocketAddr>() {
        return Ok((addr.ip().to_string(), addr.port()));
    }
    if let Some(v6) = authority.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return Ok((v6.to_owned(), DEFAULT_PORT));
    }
    match authority.split_once(':') {
        None => Ok((authority.to_owned(), DEFAULT_PORT)),
        Some((host, port)) => {
            Ok((host.to_owned(), port.parse().context("read the port of the server's URL")?))
        }
    }
}

impl Client {
    /// A client for the server at `url`; the token says under which CA it may be shown.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn new(url: &str, token: &Token) -> anyhow::Result<Self> {
        let (host, port) = host_and_port(url)?;
        let names = Arc::new(NameTable::default());
        names.set_host(Member::Server, &host, port);
        let trust: Trust = Trust::Pinned(Fingerprint(token.fingerprint.0));
        Ok(Self {
            http: tls::client(&trust, None, names)?,
            token: token.to_string(),
            url: url.to_owned(),
        })
    }

    /// A request with the token.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, tls::url(&Member::Server, path)).bearer_auth(&self.token)
    }

    /// Sends a request; an answer that is no success becomes an error that says what the server said.
    ///
    /// # Errors
    /// [`Refused`] inside when the server refused.
    pub async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let response = request
            .send()
            .await
            .with_context(|| format!("reach the server at {}: is it running?", self.url))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = response.bytes().await.context("read the server's answer")?;
        match serde_json::from_slice(&text) {
            Ok(problem) => Err(Refused { problem }.into()),
            Err(_) => bail!("the server answered {status}"),
        }
    }

    /// # Errors
    /// As [`Client::send`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let response = self.send(self.request(Method::GET, path)).await?;
        response.json().await.context("read the server's answer")
    }

    /// # Errors
    /// As [`Client::send`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let response = self.send(self.request(Method::POST, path)).await?;
        response.json().await.context("read the server's answer")
    }

    /// # Errors
    /// As [`Client::send`].
    pub async fn post_json<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> anyhow::Result<T> {
        let response = self.send(self.request(Method::POST, path).json(body)).await?;
        response.json().await.context("read the server's answer")
    }

    /// # Errors
    /// As [`Client::send`].
    pub async fn put_json<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> anyhow::Result<T> {
        let response = self.send(self.request(Method::PUT, path).json(body)).await?;
        response.json().await.context("read the server's answer")
    }

    /// # Errors
    /// As [`Client::send`].
    pub async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.send(self.request(Method::DELETE, path)).await?;
        Ok(())
    }

    /// Deletes something of a thing that stays, and gets it as it is then.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn delete_for<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let response = self.send(self.request(Method::DELETE, path)).await?;
        response.json().await.context("read the answer")
    }
}

/// A name as a part of a path.
pub(super) fn part(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_host_and_a_port() {
        let read = |url| host_and_port(url).unwrap();
        assert_eq!(read("https://10.0.0.1:9"), ("10.0.0.1".to_owned(), 9));
        assert_eq!(read("https://cairn/"), ("cairn".to_owned(), 8440));
        assert_eq!(read("https://[fd00::1]:9"), ("fd00::1".to_owned(), 9));
        assert_eq!(read("https://[fd00::1]"), ("fd00::1".to_owned(), 8440));
        for url in ["http://a", "https://", "https://a/b", "https://u@a", "https://a:x"] {
            assert!(host_and_port(url).is_err(), "{url}");
        }
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(part("a b/ä"), "a%20b%2F%C3%A4");
        assert_eq!(part("52:54:00"), "52:54:00");
    }
}
