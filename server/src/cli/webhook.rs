//! `cairn-server webhook …`

use clap::Subcommand;
use reqwest::Method;

use super::{
    client::Remote,
    output::{json, line, note, or_dash, table},
};
use crate::api::webhook::{AddedWebhook, Webhook, WebhookRequest};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Have a program told of events from now on; prints the secret that signs the messages, once
    Add {
        url: String,
        /// Only of this kind, like install-changed (repeatable)
        #[arg(long = "event", value_name = "KIND")]
        events: Vec<String>,
    },
    /// List webhooks
    List {
        #[arg(long)]
        json: bool,
    },
    /// Send an event named `ping`, now and once
    Ping { id: i64 },
    /// Remove a webhook
    Remove { id: i64 },
}

impl Args {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client = self.remote.connect()?;
        match self.verb {
            Verb::Add { url, events } => {
                let request = WebhookRequest { url, events };
                let added: AddedWebhook = client.post_json("/api/v1/webhooks", &request).await?;
                note(&format!("webhook {} is told from now on; its secret:", added.id))?;
                line(&added.secret)
            }
            Verb::List { json: as_json } => {
                let webhooks: Vec<Webhook> = client.get("/api/v1/webhooks").await?;
                if as_json {
                    return json(&webhooks);
                }
                let rows = webhooks.into_iter().map(|webhook| {
                    let events = (!webhook.events.is_empty()).then(|| webhook.events.join(", "));
                    vec![
                        webhook.id.to_string(),
                        webhook.url,
                        events.unwrap_or_else(|| "all".to_owned()),
                        or_dash(webhook.problem),
                    ]
                });
                table(&["ID", "URL", "EVENTS", "PROBLEM"], rows.collect(), "no webhooks")
            }
            Verb::Ping { id } => {
                let path = format!("/api/v1/webhooks/{id}/ping");
                client.send(client.request(Method::POST, &path)).await?;
                note("it was told")
            }
            Verb::Remove { id } => client.delete(&format!("/api/v1/webhooks/{id}")).await,
        }
    }
}
