//! The dashboard: pages for whoever signed in, as far as the role goes ([`crate::api::role`]), filled from what the API shows.
//!
//! | path | what |
//! |---|---|
//! | `/sign-in`, `/sign-out` | a session begins and ends |
//! | `/`, `/images`, `/agents`, `/machines`, `/deployments`, `/boot`, `/array`, `/settings` | the pages |
//! | `/parts/…` | the live part of each page alone, and the navigation |
//! | `/live` | names what changed, for a browser to fetch the parts again ([`live`]) |
//! | `POST /…` | a form; goes back to its page, or shows the page with why not |
//! | `/static/…` | style, script, icon |
//!
//! Invariants: a form decides nothing itself, it calls what the API calls; an unsafe request with a cookie must come from
//! our own page; every page is sent with a policy that forbids inline scripts and framing.

use axum::{
    Router,
    extract::{DefaultBodyLimit, Query, RawQuery, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse as _, Redirect, Response},
    routing::{get, post},
};
use cairn_web::{
    CONTENT_SECURITY_POLICY, Template,
    agents::{AgentsPage, JoinCommand},
    array::ArrayPage,
    boot::BootPage,
    deployments::DeploymentsPage,
    groups::Filter,
    images::ImagesPage,
    machines::MachinesPage,
    overview::OverviewPage,
    shell::{self, Place},
};
use serde::Deserialize;
use tower_http::{CompressionLevel, compression::CompressionLayer};

mod agents;
mod array;
mod boot;
mod deployments;
mod door;
mod files;
mod groups;
mod images;
pub(crate) mod live;
mod machines;
mod overview;
mod settings;
mod visit;

use self::visit::Visit;
use crate::{
    api::{auth, error::ApiError, extract::Params},
    app::App,
    moment::Moment,
    secret,
};

/// The largest form.
const MAX_FORM: usize = 16 << 10;

/// Everything that a browser sees.
pub(crate) fn routes(app: &App) -> Router<App> {
    // A part is made once for all who look, and sent as it is: to each of 200 pages twice a second it would be compressed anew.
    let parts = Router::new()
        .route("/parts/nav", get(nav_part))
        .route("/parts/{part}", get(part))
        .route("/live", get(live::listen));
    let pages = Router::new()
        .route("/", get(overview_page))
        .route("/images", get(images_page))
        .route("/images/{name}/{number}/remove", post(images::remove))
        .route("/images/{name}/{number}/promote", post(images::promote))
        .route("/images/{name}/rollback", post(images::roll_back))
        .route("/images/files", post(images::register_file))
        .route("/images/address", post(images::register_address))
        .route("/agents", get(agents_page))
        .route("/agents/join", post(agents::join))
        .route("/agents/{agent}/approve", post(agents::approve))
        .route("/agents/{agent}/revoke", post(agents::revoke))
        .route("/agents/{agent}/forget", post(agents::forget))
        .route("/machines", get(machines_page))
        .route("/machines/groups", post(groups::create))
        .route("/machines/groups/{group}/remove", post(groups::remove))
        .route("/machines/groups/{group}/image", post(groups::set_image))
        .route("/machines/many/{action}", post(groups::many))
        .route("/machines/{machine}", get(machines::show))
        .route("/machines/{machine}/install", post(machines::install))
        .route("/machines/{machine}/approve", post(machines::approve))
        .route("/machines/{machine}/refuse", post(machines::refuse))
        .route("/machines/{machine}/name", post(machines::name))
        .route("/deployments", get(deployments_page))
        .route("/deployments/{deployment}/cancel", post(deployments::cancel))
        .route("/deployments/{deployment}/retry", post(deployments::retry))
        .route("/deployments/{deployment}/pause", post(deployments::pause))
        .route("/deployments/{deployment}/resume", post(deployments::resume))
        .route("/deployments/{deployment}/rate-limit", post(deployments::limit))
        .route("/deployments/installs/{install}/cancel", post(deployments::skip))
        .route("/boot", get(boot_page))
        .route("/boot/survey", post(boot::survey))
        .route("/array", get(array_page).post(array::create))
        .route("/array/scrub", post(array::begin_scrub))
        .route("/array/rebalance", post(array::begin_rebalance))
        .route("/array/{volume}/remove", post(array::remove))
        .route("/array/{volume}/snapshots", post(array::take))
        .route("/array/{volume}/snapshots/{snapshot}/remove", post(array::forget))
        .route("/settings", get(settings::show))
        .route("/settings/users", post(settings::add_user))
        .route("/settings/users/{name}/role", post(settings::change_role))
        .route("/settings/users/{name}/password", post(settings::new_password))
        .route("/settings/users/{name}/remove", post(settings::remove_user))
        .route("/settings/tokens", post(settings::add_token))
        .route("/settings/tokens/{token}/revoke", post(settings::revoke_token))
        .route("/settings/own-password", post(settings::own_password))
        .route("/settings/webhooks", post(settings::add_webhook))
        .route("/settings/webhooks/{webhook}/ping", post(settings::try_webhook))
        .route("/settings/webhooks/{webhook}/remove", post(settings::remove_webhook))
        .route("/sign-out", post(door::sign_out));
    let inside =
        compressed(pages).merge(parts).layer(middleware::from_fn_with_state(app.clone(), guard));
    let outside = Router::new()
        .route("/sign-in", get(door::show).post(door::sign_in))
        .route("/static/{*path}", get(files::serve));
    inside
        .merge(compressed(outside))
        .layer(DefaultBodyLimit::max(MAX_FORM))
        .layer(middleware::map_response(harden))
}

/// Sends what is asked for in small: a page repeats itself much.
fn compressed(routes: Router<App>) -> Router<App> {
    routes.layer(CompressionLayer::new().quality(CompressionLevel::Fastest))
}

/// Lets in whoever signed in and sends everybody else to the door.
async fn guard(State(app): State<App>, request: Request, next: Next) -> Result<Response, ApiError> {
    let Some(actor) = auth::user_of(&app, request.headers()).await? else {
        return Ok(to_the_door(&request));
    };
    let safe = matches!(*request.method(), Method::GET | Method::HEAD);
    if !safe && !auth::is_intended(request.headers()) {
        return Err(ApiError::forbidden(
            "cross_site",
            "this form did not come from a page of this server: open the dashboard and try again",
        ));
    }
    let visit = Visit::new(app.clone(), actor.clone());
    let done = auth::pass(&app, actor, request, next).await;
    if !safe {
        app.live.outdate();
    }
    match done {
        Err(error) => match error.for_people() {
            Some((status, why)) => {
                let mut response = page(&visit, Place::Overview, Some(why)).await?;
                *response.status_mut() = status;
                Ok(response)
            }
            None => Err(error),
        },
        done => done,
    }
}

fn to_the_door(request: &Request) -> Response {
    let headers = request.headers();
    if headers.contains_key("hx-request") {
        // htmx follows a redirect by itself and would put the door into the page.
        return (StatusCode::UNAUTHORIZED, [("hx-redirect", "/sign-in")]).into_response();
    }
    if request.uri().path() == "/live" {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    match *request.method() {
        Method::GET => {
            Redirect::to(&format!("/sign-in?next={}", request.uri().path())).into_response()
        }
        _ => Redirect::to("/sign-in").into_response(),
    }
}

async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let fixed: [(HeaderName, &'static str); 4] = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if !headers.contains_key(header::CACHE_CONTROL) {
        // What a page shows is for whoever signed in, and soon old.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

async fn overview_page(visit: Visit) -> Result<Response, ApiError> {
    page(&visit, Place::Overview, None).await
}

async fn images_page(
    visit: Visit,
    Params(asked): Params<images::Asked>,
) -> Result<Response, ApiError> {
    images_with(&visit, None, asked).await
}

async fn agents_page(visit: Visit, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    agents_with(&visit, None, None, query.as_deref()).await
}

async fn machines_page(
    visit: Visit,
    Params(asked): Params<groups::Asked>,
) -> Result<Response, ApiError> {
    machines_with(&visit, None, asked.into()).await
}

async fn deployments_page(visit: Visit) -> Result<Response, ApiError> {
    page(&visit, Place::Deployments, None).await
}

async fn boot_page(visit: Visit) -> Result<Response, ApiError> {
    page(&visit, Place::Boot, None).await
}

async fn array_page(visit: Visit) -> Result<Response, ApiError> {
    page(&visit, Place::Array, None).await
}

#[derive(Deserialize)]
struct At {
    at: String,
}

async fn nav_part(visit: Visit, Query(At { at }): Query<At>) -> Result<Response, ApiError> {
    let at = Place::of_word(&at).ok_or_else(unknown_part)?;
    fragment(&overview::nav(&visit, at).await?)
}

async fn part(
    visit: Visit,
    axum::extract::Path(part): axum::extract::Path<String>,
    Params(asked): Params<groups::Asked>,
) -> Result<Response, ApiError> {
    let place = Place::of_word(&part).ok_or_else(unknown_part)?;
    let filter = Filter::from(asked);
    let name = format!("{part}{}", filter.query());
    let html = visit.live.part(&name, render_part(&visit, place, filter)).await?;
    Ok(Html(html.to_string()).into_response())
}

async fn render_part(app: &App, place: Place, filter: Filter) -> Result<String, ApiError> {
    match place {
        Place::Overview => rendered(overview::view(app).await?.render()),
        Place::Images => rendered(images::view(app, filter.page).await?.render()),
        Place::Agents => rendered(agents::view(app).await?.render()),
        Place::Machines => rendered(machines::view(app, filter).await?.render()),
        Place::Deployments => rendered(deployments::view(app).await?.render()),
        Place::Boot => rendered(boot::view(app).await?.render()),
        Place::Array => rendered(array::view(app).await?.render()),
        // It depends on who looks.
        Place::Settings => Err(unknown_part()),
    }
}

fn unknown_part() -> ApiError {
    ApiError::not_found("unknown_part", "no page has such a part")
}

fn fragment(view: &impl Template) -> Result<Response, ApiError> {
    Ok(Html(rendered(view.render())?).into_response())
}

fn rendered(html: Result<String, impl Into<anyhow::Error>>) -> Result<String, ApiError> {
    html.map_err(|error| ApiError::from(error.into().context("render a page")))
}

/// A page, with why what was asked for did not happen.
async fn page(visit: &Visit, place: Place, notice: Option<&str>) -> Result<Response, ApiError> {
    let nav = overview::nav(visit, place).await?;
    let html = match place {
        Place::Overview => {
            shell::page(&nav, notice, &OverviewPage { live: &overview::view(visit).await? })
        }
        Place::Images => return images_with(visit, notice, images::Asked::default()).await,
        Place::Agents => return agents_with(visit, notice, None, None).await,
        // Its forms show it themselves, as it depends on who looks.
        Place::Settings => return Ok(Redirect::to(place.path()).into_response()),
        Place::Machines => return machines_with(visit, notice, Filter::default()).await,
        Place::Deployments => {
            shell::page(&nav, notice, &DeploymentsPage { live: &deployments::view(visit).await? })
        }
        Place::Boot => shell::page(&nav, notice, &BootPage { live: &boot::view(visit).await? }),
        Place::Array => {
            let (live, images) = (&array::view(visit).await?, array::images(visit).await?);
            shell::page(&nav, notice, &ArrayPage { live, images })
        }
    };
    Ok(Html(rendered(html)?).into_response())
}

/// A page of images.
async fn images_with(
    visit: &Visit,
    notice: Option<&str>,
    asked: images::Asked,
) -> Result<Response, ApiError> {
    let nav = overview::nav(visit, Place::Images).await?;
    let (live, files) = (&images::view(visit, asked.page).await?, images::files(visit).await?);
    let fetches = visit.sources.has_hosts();
    let signature = images::signature(visit, &asked.signature).await?;
    let html = shell::page(&nav, notice, &ImagesPage { live, files, fetches, signature });
    Ok(Html(rendered(html)?).into_response())
}

/// The page of machines, with those that are asked for.
async fn machines_with(
    visit: &Visit,
    notice: Option<&str>,
    filter: Filter,
) -> Result<Response, ApiError> {
    let nav = overview::nav(visit, Place::Machines).await?;
    let live = &machines::view(visit, filter).await?;
    Ok(Html(rendered(shell::page(&nav, notice, &MachinesPage { live }))?).into_response())
}

/// The page of agents, with a join command that was made just now, and what would be left without some of them.
async fn agents_with(
    visit: &Visit,
    notice: Option<&str>,
    join: Option<JoinCommand>,
    query: Option<&str>,
) -> Result<Response, ApiError> {
    let nav = overview::nav(visit, Place::Agents).await?;
    let live = &agents::view(visit).await?;
    let (presence, churn) = agents::availability(visit).await?;
    let what_if = agents::what_if(visit, query).await?;
    let html = shell::page(&nav, notice, &AgentsPage { live, join, presence, churn, what_if });
    Ok(Html(rendered(html)?).into_response())
}

/// The answer to a form: to `place` when it was done, else `place` with why not.
async fn answer<T>(
    visit: &Visit,
    place: Place,
    done: Result<T, ApiError>,
) -> Result<Response, ApiError> {
    let Err(error) = done else { return Ok(Redirect::to(place.path()).into_response()) };
    let Some((status, why)) = error.for_people() else { return Err(error) };
    let mut response = page(visit, place, Some(why)).await?;
    *response.status_mut() = status;
    Ok(response)
}

/// A request's headers as far as a session goes; for handlers that end one.
fn session_of(headers: &HeaderMap) -> Option<[u8; 32]> {
    auth::session(headers).map(secret::hash)
}

/// A moment of the API, and how long ago it is.
fn ago(text: &str, now: Moment) -> cairn_web::text::Ago {
    let seconds = at(text).map_or(0, |moment| now.since(moment).as_secs());
    cairn_web::text::Ago { at: text.to_owned(), seconds }
}

/// A moment as the API shows it.
fn at(text: &str) -> Option<Moment> {
    use time::{OffsetDateTime, format_description::well_known::Rfc3339};
    let moment = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Some(Moment(moment.unix_timestamp().checked_mul(1000)?))
}

/// `NAME@N` as people read it.
fn image_label(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((name, number)) => format!("{name}, version {number}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
