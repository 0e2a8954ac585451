//! Users: who may sign in to the dashboard, and what each may do.

use std::fmt;

use anyhow::Context as _;
use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{ApiError, Problem},
    extract::{Body, Place},
    image::is_name,
    scope,
    session::{MAX_PASSWORD, hash_password},
};
use crate::{
    app::App,
    db::account::{Account, AccountError, Role, Scope},
    moment::Moment,
    secret,
};

const MIN_PASSWORD: usize = 10;

/// A user.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct User {
    pub name: String,
    pub role: Role,
    /// Of an operator: the groups of machines that the work is limited to; none: all machines, and the site.
    #[serde(default)]
    pub groups: Vec<String>,
    pub created: String,
}

impl From<Account> for User {
    fn from(account: Account) -> Self {
        Self {
            name: account.name,
            role: account.role,
            groups: account.scope.0,
            created: account.created.to_text(),
        }
    }
}

/// Who is to be added.
#[derive(Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserRequest {
    pub name: String,
    pub role: Role,
    /// Of an operator: the groups of machines that the work is limited to; none: all machines, and the site.
    #[serde(default)]
    pub groups: Vec<String>,
    /// At least 10 characters; without it one is made and shown once.
    #[serde(default)]
    pub password: Option<String>,
}

impl fmt::Debug for UserRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserRequest")
            .field("name", &self.name)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// What is to change. Sessions of the user end.
#[derive(Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserChange {
    #[serde(default)]
    pub role: Option<Role>,
    /// Of an operator: other groups that the work is limited to; an empty list for all machines, and the site.
    #[serde(default)]
    pub groups: Option<Vec<String>>,
    /// At least 10 characters.
    #[serde(default)]
    pub password: Option<String>,
    /// Make a password and show it once.
    #[serde(default)]
    pub new_password: bool,
}

impl fmt::Debug for UserChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserChange").field("role", &self.role).finish_non_exhaustive()
    }
}

/// A user that was added or changed.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct ChangedUser {
    pub name: String,
    pub role: Role,
    #[serde(default)]
    pub groups: Vec<String>,
    /// One that was made; this is the only time it is shown.
    pub password: Option<String>,
}

impl fmt::Debug for ChangedUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChangedUser")
            .field("name", &self.name)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

fn refuse(error: AccountError) -> ApiError {
    match error {
        AccountError::NameTaken => ApiError::conflict("user_exists", error.to_string()),
        AccountError::LastAdmin => ApiError::conflict("last_admin", error.to_string()),
        AccountError::Unknown => ApiError::not_found(
            "user_unknown",
            "there is no such user: `cairn-server user list` shows them",
        ),
        AccountError::Db(error) => error.into(),
    }
}

/// The password to be kept, and the one to be shown.
pub(super) async fn password(
    wished: Option<String>,
    make: bool,
) -> Result<(Option<String>, Option<String>), ApiError> {
    let (password, shown) = match (wished, make) {
        (None, false) => return Ok((None, None)),
        (Some(wished), false) => {
            if wished.chars().count() < MIN_PASSWORD || wished.len() > MAX_PASSWORD {
                return Err(ApiError::bad_request(
                    "bad_password",
                    format!(
                        "a password has {MIN_PASSWORD} characters at least, and {MAX_PASSWORD} bytes at most"
                    ),
                ));
            }
            (wished, None)
        }
        (None, true) => {
            let made = secret::random_password()?;
            (made.clone(), Some(made))
        }
        (Some(_), true) => {
            return Err(ApiError::bad_request(
                "two_passwords",
                "a password is given or made: not both",
            ));
        }
    };
    let hashed = tokio::task::spawn_blocking(move || hash_password(&password));
    Ok((Some(hashed.await.context("hash a password")??), shown))
}

/// List users
#[utoipa::path(get, path = "/api/v1/users", tag = "users", responses((status = 200, body = Vec<User>)))]
pub(crate) async fn list(State(app): State<App>) -> Result<Json<Vec<User>>, ApiError> {
    Ok(Json(app.db.accounts().await?.into_iter().map(User::from).collect()))
}

/// Show a user
#[utoipa::path(get, path = "/api/v1/users/{name}", tag = "users", params(("name" = String, Path)),
    responses((status = 200, body = User), (status = 404, body = Problem)))]
pub(crate) async fn show(
    State(app): State<App>,
    Place(name): Place<String>,
) -> Result<Json<User>, ApiError> {
    let account = app.db.account_named(&name).await?.ok_or(AccountError::Unknown);
    Ok(Json(account.map_err(refuse)?.into()))
}

/// Add a user
#[utoipa::path(post, path = "/api/v1/users", tag = "users", request_body = UserRequest,
    responses((status = 201, body = ChangedUser), (status = 400, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn create(
    State(app): State<App>,
    Body(request): Body<UserRequest>,
) -> Result<(StatusCode, Json<ChangedUser>), ApiError> {
    let UserRequest { name, role, groups, password: wished } = request;
    if !is_name(&name) {
        return Err(ApiError::bad_request(
            "bad_name",
            "a user's name has 1 to 63 letters, digits, dots, dashes and underscores, and begins with a letter or digit",
        ));
    }
    let scope = scope::of(&app, role, groups).await?;
    let make = wished.is_none();
    let (kept, shown) = password(wished, make).await?;
    let kept = kept.context("make a password")?;
    app.db.add_account(&name, &kept, role, &scope, Moment::now()).await.map_err(refuse)?;
    let user = ChangedUser { name, role, groups: scope.0, password: shown };
    Ok((StatusCode::CREATED, Json(user)))
}

/// Give a user another role, scope or password
#[utoipa::path(patch, path = "/api/v1/users/{name}", tag = "users", params(("name" = String, Path)),
    request_body = UserChange,
    responses((status = 200, body = ChangedUser), (status = 400, body = Problem), (status = 404, body = Problem),
    (status = 409, body = Problem)))]
pub(crate) async fn change(
    State(app): State<App>,
    Place(name): Place<String>,
    Body(change): Body<UserChange>,
) -> Result<Json<ChangedUser>, ApiError> {
    let UserChange { role, groups, password: wished, new_password } = change;
    if role.is_none() && groups.is_none() && wished.is_none() && !new_password {
        return Err(ApiError::bad_request("no_change", "say a role, groups, or a password"));
    }
    let account = app.db.account_named(&name).await?.ok_or(AccountError::Unknown);
    let account = account.map_err(refuse)?;
    let will_be = role.unwrap_or(account.role);
    let scope = match groups {
        Some(groups) => Some(scope::of(&app, will_be, groups).await?),
        // Only operators have one.
        None if will_be != Role::Operator => Some(Scope::default()),
        None => None,
    };
    let (kept, shown) = password(wished, new_password).await?;
    let changed = app.db.change_account(&name, role, scope.as_ref(), kept.as_deref()).await;
    changed.map_err(refuse)?;
    let account = app.db.account_named(&name).await?.ok_or(AccountError::Unknown);
    let account = account.map_err(refuse)?;
    Ok(Json(ChangedUser { name, role: account.role, groups: account.scope.0, password: shown }))
}

/// Remove a user
#[utoipa::path(delete, path = "/api/v1/users/{name}", tag = "users", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn remove(
    State(app): State<App>,
    Place(name): Place<String>,
) -> Result<StatusCode, ApiError> {
    app.db.remove_account(&name).await.map_err(refuse)?;
    Ok(StatusCode::NO_CONTENT)
}
