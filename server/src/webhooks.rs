//! Tells programs elsewhere of events, as Standard Webhooks has it (<https://www.standardwebhooks.com>).
//!
//! ```text
//!   POST URL
//!   webhook-id: evt_ID                  the same each time that it is sent
//!   webhook-timestamp: SECONDS
//!   webhook-signature: v1,BASE64        HMAC-SHA256 of `ID.SECONDS.BODY` under the secret
//!   { "type": KIND, "timestamp": WHEN, "data": {…} }
//! ```
//!
//! Invariants: each webhook hears its events in order, one at a time, and each at least once; one that does not answer with
//! 2xx is asked again, ever more seldom, for as long as the event is kept.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::redirect::Policy;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::{app::App, db::webhook::WebhookRow, events::Emitted, moment::Moment};

/// How soon one that was added is told.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Until one that failed is told again; doubled up to [`MOST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MOST_PAUSE: Duration = Duration::from_secs(300);
/// How long one may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Events that are read at once.
const AT_ONCE: u32 = 100;
/// How often it is looked whether it is there still.
const IDLE: Duration = Duration::from_secs(60);

/// What goes out for an event.
struct Message {
    id: String,
    body: String,
}

impl Message {
    fn of(event: &Emitted) -> anyhow::Result<Self> {
        let data: serde_json::Value = serde_json::from_str(&event.payload)?;
        let when = Moment(i64::try_from(event.id / 1000)?);
        let body = serde_json::json!({
            "type": event.kind, "timestamp": when.to_text(), "data": data,
        });
        Ok(Self { id: format!("evt_{}", event.id), body: body.to_string() })
    }

    /// The value of `webhook-signature`.
    fn signature(&self, secret: &[u8], seconds: i64) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let signed = format!("{}.{seconds}.{}", self.id, self.body);
        format!("v1,{}", STANDARD.encode(hmac::sign(&key, signed.as_bytes())))
    }
}

/// The secret as its receiver wants it.
#[must_use]
pub(crate) fn secret_text(secret: &[u8]) -> String {
    format!("whsec_{}", STANDARD.encode(secret))
}

/// Tells all webhooks, until the server stops.
pub(crate) async fn watch(app: App) {
    let mut running: HashMap<i64, CancellationToken> = HashMap::new();
    loop {
        running.retain(|_, ended| !ended.is_cancelled());
        match app.db.webhooks().await {
            Err(error) => tracing::error!(%error, "list webhooks"),
            Ok(webhooks) => {
                for webhook in webhooks {
                    running.entry(webhook.id).or_insert_with(|| {
                        let ended = CancellationToken::new();
                        let guard = ended.clone().drop_guard();
                        let app = app.clone();
                        app.tasks.clone().spawn(async move {
                            let _ended = guard;
                            app.stop.run_until_cancelled(follow(&app, webhook.id)).await;
                        });
                        ended
                    });
                }
            }
        }
        if app.stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
            return;
        }
    }
}

/// Tells one webhook for as long as it is there.
async fn follow(app: &App, id: i64) {
    let mut pause = FIRST_PAUSE;
    let mut live = app.events.listen();
    loop {
        match tell(app, id).await {
            Ok(Told::Gone) => return,
            Ok(Told::Some) => pause = FIRST_PAUSE,
            Ok(Told::All) => {
                pause = FIRST_PAUSE;
                wait(&mut live).await;
            }
            Err(error) => {
                let why = format!("{error:#}");
                tracing::warn!(webhook = id, error = why, "a webhook was not told");
                if let Err(error) = app.db.note_undelivered(id, &why).await {
                    tracing::error!(webhook = id, %error, "note why a webhook was not told");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MOST_PAUSE);
            }
        }
    }
}

async fn wait(live: &mut broadcast::Receiver<Arc<Emitted>>) {
    // One that fell behind looks again, too.
    drop(tokio::time::timeout(IDLE, live.recv()).await);
}

/// How far one came.
enum Told {
    /// There is no such webhook any more.
    Gone,
    /// There may be more.
    Some,
    All,
}

async fn tell(app: &App, id: i64) -> anyhow::Result<Told> {
    let Some(webhook) = app.db.webhook(id).await? else { return Ok(Told::Gone) };
    let events = app.db.events_after(webhook.delivered, AT_ONCE).await?;
    let Some(last) = events.last().map(|event| event.id) else { return Ok(Told::All) };
    let client = client()?;
    for row in events {
        if webhook.events.is_empty() || webhook.events.contains(&row.kind) {
            let event = Emitted { id: row.id, kind: row.kind, payload: row.payload };
            send(&client, &webhook, &Message::of(&event)?).await?;
            app.db.note_delivered(id, event.id).await?;
        }
    }
    app.db.note_delivered(id, last).await?;
    Ok(Told::Some)
}

fn client() -> anyhow::Result<reqwest::Client> {
    let client = reqwest::Client::builder().redirect(Policy::none()).no_proxy().timeout(PATIENCE);
    client.build().context("build the HTTP client")
}

async fn send(client: &reqwest::Client, to: &WebhookRow, message: &Message) -> anyhow::Result<()> {
    let seconds = Moment::now().0 / 1000;
    let sent = client
        .post(&to.url)
        .header("content-type", "application/json")
        .header("webhook-id", &message.id)
        .header("webhook-timestamp", seconds.to_string())
        .header("webhook-signature", message.signature(&to.secret, seconds))
        .body(message.body.clone())
        .send()
        .await;
    // The address may have a secret in it.
    let answer = sent.map_err(reqwest::Error::without_url).context("it does not answer")?;
    let status = answer.status();
    ensure!(status.is_success(), "it answers {status}");
    Ok(())
}

/// Sends one webhook an event that means nothing, now and once.
pub(crate) async fn try_out(webhook: &WebhookRow) -> anyhow::Result<()> {
    let id = u64::try_from(Moment::now().0).unwrap_or(0).saturating_mul(1000);
    let event = Emitted { id, kind: "ping".to_owned(), payload: "{}".to_owned() };
    send(&client()?, webhook, &Message::of(&event)?).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's own test vectors: secret, id, timestamp and body.
    #[test]
    fn a_message_is_signed_as_the_specification_has_it() {
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let message = Message {
            id: "msg_p5jXN8AQM9LWM0D4loKWxJek".to_owned(),
            body: r#"{"test": 2432232314}"#.to_owned(),
        };
        let signature = message.signature(&secret, 1_614_265_330);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(secret_text(&secret), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    }

    #[test]
    fn a_message_says_what_happened_and_when() {
        let event = Emitted {
            id: 1_795_000_000_000_123,
            kind: "image-changed".to_owned(),
            payload: r#"{"name":"lab"}"#.to_owned(),
        };
        let message = Message::of(&event).unwrap();
        assert_eq!(message.id, "evt_1795000000000123");
        let body: serde_json::Value = serde_json::from_str(&message.body).unwrap();
        assert_eq!(body["type"], "image-changed");
        assert_eq!(body["data"]["name"], "lab");
        assert_eq!(body["timestamp"], Moment(1_795_000_000_000).to_text());
    }
}
