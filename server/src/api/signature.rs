//! Who vouches for a version of an image.

use axum::{Json, extract::State};
use cairn_core::{id::sha256, manifest::Public};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{ApiError, Problem},
    extract::Place,
    image::unknown,
};
use crate::{app::App, register};

/// The signature of a version's manifest, which names every segment of it: machines install nothing that it does not vouch for.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Signature {
    /// The site signed these bytes, and they are of this version.
    pub valid: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The site's signing key: Ed25519, 64 hex digits.
    pub key: String,
    /// SHA-256 of the signed manifest, 64 hex digits; none when the store has no manifest.
    pub manifest: Option<String>,
    /// Segments that it names.
    pub segments: u64,
}

/// Check the signature of a version
#[utoipa::path(get, path = "/api/v1/images/{name}/versions/{number}/signature", tag = "images",
    params(("name" = String, Path), ("number" = u32, Path)),
    responses((status = 200, body = Signature), (status = 404, body = Problem)))]
pub(crate) async fn show(
    State(app): State<App>,
    Place((name, number)): Place<(String, u32)>,
) -> Result<Json<Signature>, ApiError> {
    Ok(Json(check(&app, &name, number).await?))
}

/// Reads the manifest and checks it.
pub(crate) async fn check(app: &App, name: &str, number: u32) -> Result<Signature, ApiError> {
    let version = app.db.version_named(name, Some(number)).await?.ok_or_else(|| unknown(name))?;
    let key = app.site.verifying_key();
    let said = Signature {
        valid: false,
        problem: None,
        key: hex::encode(key.0),
        manifest: None,
        segments: 0,
    };
    let Some(signed) = register::manifest(app, version.id).await? else {
        let problem = Some("the store has no manifest of it".to_owned());
        return Ok(Signature { problem, ..said });
    };
    let manifest = Some(hex::encode(sha256(&signed)));
    Ok(match Public::open(&key, &signed) {
        Ok(public) if public.version == version.id => {
            let segments = public.segments().count() as u64;
            Signature { valid: true, manifest, segments, ..said }
        }
        Ok(_) => {
            let problem = Some("the manifest is of another version".to_owned());
            Signature { problem, manifest, ..said }
        }
        Err(error) => Signature { problem: Some(error.to_string()), manifest, ..said },
    })
}
