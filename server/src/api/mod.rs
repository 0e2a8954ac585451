//! The HTTP interface. All routes of the REST API are on this page; the OpenAPI document is made from them.
//!
//! | path | for |
//! |---|---|
//! | `/api/v1/…` | an API token, or a dashboard session, as far as its role goes ([`role`]) |
//! | `/agent/v1/…`, `/target/v1/…`, `/peer/v1/…` | members; see `cairn_array::wire` |
//! | `/`, `/images`, …, `/static/…` | browsers; see `dashboard` |
//! | `/healthz`, `/readyz`, `/api/openapi.json`, `POST /api/v1/session`, `/install/agent.deb` | anybody |

use std::collections::BTreeMap;

use axum::{
    Router, extract::DefaultBodyLimit, middleware, response::IntoResponse as _, routing::get,
};
use utoipa::{
    Modify, OpenApi, ToSchema as _,
    openapi::{
        Content, ObjectBuilder, Ref, RefOr, Response as ResponseDocument, ResponseBuilder, Type,
        path::{Parameter, ParameterBuilder, ParameterIn},
        security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

pub mod agent;
pub mod audit;
pub(crate) mod auth;
pub mod availability;
mod backup;
pub mod boot;
pub mod deployment;
pub mod disk;
pub(crate) mod edit;
pub mod error;
pub mod event;
pub(crate) mod extract;
pub mod grant;
pub mod group;
mod idempotency;
pub mod image;
mod install;
pub mod install_log;
pub mod job;
pub mod limits;
pub mod loss;
pub mod machine;
mod metrics;
mod part;
pub(crate) mod rebalance;
pub mod role;
pub(crate) mod scope;
pub(crate) mod scrub;
pub mod session;
pub mod signature;
pub mod snapshot;
pub mod status;
pub mod steer;
pub(crate) mod store;
pub mod token;
pub mod user;
pub mod volume;
pub mod webhook;

use crate::{agents, app::App, dashboard, peers, targets};

/// The largest JSON body of the API.
const MAX_BODY: usize = 1 << 20;

#[derive(OpenApi)]
#[openapi(
    info(title = "Cairn", description = "Deploys operating systems from the disks of the fleet that runs them."),
    modifiers(&Keys),
    security(("token" = []), ("session" = []))
)]
struct Document;

struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_with(Default::default);
        components
            .add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
        let cookie = SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::new(auth::COOKIE)));
        components.add_security_scheme("session", cookie);
    }
}

/// Machines, how they boot and what is installed on them.
fn of_machines() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(machine::list))
        .routes(routes!(machine::show, machine::forget))
        .routes(routes!(machine::approve))
        .routes(routes!(machine::refuse))
        .routes(routes!(machine::name))
        .routes(routes!(machine::boot_volume, machine::boot_own_disk))
        .routes(routes!(group::list, group::create))
        .routes(routes!(group::show, group::remove))
        .routes(routes!(group::set_image))
        .routes(routes!(group::add_machines))
        .routes(routes!(group::remove_machine))
        .routes(routes!(deployment::list, deployment::create))
        .routes(routes!(deployment::show))
        .routes(routes!(deployment::cancel))
        .routes(routes!(deployment::segments))
        .routes(routes!(steer::pause))
        .routes(routes!(steer::resume))
        .routes(routes!(steer::limit))
        .routes(routes!(deployment::retry))
        .routes(routes!(deployment::list_installs))
        .routes(routes!(deployment::list_of_machine))
        .routes(routes!(deployment::show_install))
        .routes(routes!(install_log::show))
        .routes(routes!(deployment::cancel_install))
        .routes(routes!(boot::show))
        .routes(routes!(boot::survey))
}

/// The API's routes: those for administrators, and those for anybody.
fn api() -> (OpenApiRouter<App>, OpenApiRouter<App>) {
    let administrators = OpenApiRouter::new()
        .routes(routes!(image::list))
        .routes(routes!(image::show, image::remove))
        .routes(routes!(image::remove_version))
        .routes(routes!(image::export))
        .routes(routes!(signature::show))
        .routes(routes!(image::promote))
        .routes(routes!(image::roll_back))
        .routes(routes!(disk::of_image))
        .routes(routes!(image::registrations))
        .routes(routes!(image::files))
        .routes(routes!(token::list, token::create))
        .routes(routes!(token::revoke))
        .routes(routes!(user::list, user::create))
        .routes(routes!(user::show, user::change, user::remove))
        .routes(routes!(audit::list))
        .routes(routes!(agent::list))
        .routes(routes!(agent::show, agent::forget))
        .routes(routes!(agent::approve))
        .routes(routes!(agent::revoke))
        .routes(routes!(grant::give))
        .routes(routes!(loss::show))
        .routes(routes!(availability::show))
        .merge(of_machines())
        .routes(routes!(volume::list, volume::create))
        .routes(routes!(volume::show, volume::resize, volume::remove))
        .routes(routes!(volume::papers))
        .routes(routes!(disk::of_volume))
        .routes(routes!(snapshot::list, snapshot::take))
        .routes(routes!(snapshot::remove))
        .routes(routes!(snapshot::roll_back))
        .routes(routes!(limits::show, limits::set))
        .routes(routes!(store::list))
        .routes(routes!(scrub::show, scrub::begin))
        .routes(routes!(rebalance::begin))
        .routes(routes!(backup::make))
        .routes(routes!(status::show))
        .routes(routes!(metrics::show))
        .routes(routes!(job::list))
        .routes(routes!(event::listen))
        .routes(routes!(webhook::list, webhook::create))
        .routes(routes!(webhook::remove))
        .routes(routes!(webhook::ping))
        .routes(routes!(session::sign_out))
        .routes(routes!(session::change_password))
        .layer(DefaultBodyLimit::max(MAX_BODY));
    // An image is streamed and bounded by its declared size, not by a limit of bodies.
    let uploads =
        OpenApiRouter::new().routes(routes!(image::add)).layer(DefaultBodyLimit::disable());
    let anybody = OpenApiRouter::new()
        .routes(routes!(session::sign_in))
        .routes(routes!(status::healthz))
        .routes(routes!(status::readyz))
        .routes(routes!(install::agent_package))
        .layer(DefaultBodyLimit::max(MAX_BODY));
    (administrators.merge(uploads), anybody)
}

/// The OpenAPI document.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    let (administrators, anybody) = api();
    let mut document = OpenApiRouter::<App>::with_openapi(Document::openapi())
        .merge(administrators)
        .merge(anybody)
        .into_openapi();
    for (place, path) in &mut document.paths.paths {
        if let (true, Some(post)) = (idempotency::CREATES.contains(&place.as_str()), &mut path.post)
        {
            post.parameters.get_or_insert_default().push(RefOr::T(idempotency_key()));
        }
        if edit::is_edited(place) {
            let edits = [&mut path.put, &mut path.post, &mut path.delete, &mut path.patch];
            for edit in edits.into_iter().flatten() {
                edit.parameters.get_or_insert_default().push(RefOr::T(if_match()));
            }
        }
        let operations =
            [&mut path.get, &mut path.put, &mut path.post, &mut path.delete, &mut path.patch];
        for operation in operations.into_iter().flatten() {
            tell_of_problems(&mut operation.responses.responses);
        }
    }
    document
}

fn if_match() -> Parameter {
    let text = ObjectBuilder::new().schema_type(Type::String).build();
    ParameterBuilder::new()
        .name("If-Match")
        .parameter_in(ParameterIn::Header)
        .description(Some("The `ETag` that it was shown with: 412 when it was edited since"))
        .schema(Some(text))
        .build()
}

fn idempotency_key() -> Parameter {
    ParameterBuilder::new()
        .name("Idempotency-Key")
        .parameter_in(ParameterIn::Header)
        .description(Some(
            "1 to 64 characters of ASCII: asked for again with the same key within a day, it is done once",
        ))
        .schema(Some(
            ObjectBuilder::new()
                .schema_type(Type::String)
                .min_length(Some(1))
                .max_length(Some(idempotency::MAX_KEY))
                .pattern(Some("^[!-~]+$")),
        ))
        .build()
}

/// Whatever is refused is refused with a problem document, also where an operation does not name it.
fn tell_of_problems(responses: &mut BTreeMap<String, RefOr<ResponseDocument>>) {
    const PROBLEM: &str = "application/problem+json";
    for (status, response) in responses.iter_mut() {
        let RefOr::T(response) = response else { continue };
        if status.starts_with(['4', '5'])
            && let Some(content) = response.content.shift_remove("application/json")
        {
            response.content.insert(PROBLEM.to_owned(), content);
        }
    }
    let content = Content::new(Some(Ref::from_schema_name(error::Problem::name())));
    let other = ResponseBuilder::new()
        .description("What was wrong, and what to do")
        .content(PROBLEM, content)
        .build();
    responses.insert("default".to_owned(), other.into());
}

/// Everything that the HTTPS service serves.
pub(crate) fn router(app: &App) -> Router {
    let (administrators, anybody) = api();
    let guard = middleware::from_fn_with_state(app.clone(), auth::require);
    let (administrators, _) = administrators.layer(guard).split_for_parts();
    let (anybody, _) = anybody.split_for_parts();
    let document = openapi();
    let json = get(move || {
        let document = document.clone();
        async move { axum::Json(document).into_response() }
    });
    Router::new()
        .merge(administrators)
        .merge(anybody)
        .merge(agents::routes())
        .merge(targets::routes())
        .merge(peers::routes(app))
        .merge(dashboard::routes(app))
        .route("/api/openapi.json", json)
        .fallback(error::unknown_path)
        .method_not_allowed_fallback(error::unknown_method)
        .layer(middleware::from_fn(error::name_requests))
        .with_state(app.clone())
}
