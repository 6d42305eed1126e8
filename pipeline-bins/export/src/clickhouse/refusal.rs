//! What an answer of ClickHouse means about who we are and whom we trust: told by the file that has it, never by what is in
//! the file. ClickHouse begins such answers with the user's name.

use std::path::PathBuf;

use penstock_pipeline::config::ClickHouseDestination;

use super::table::{TableError, exception_code};

/// Users and passwords that it does not know: `UNKNOWN_USER`, `WRONG_PASSWORD`, `REQUIRED_PASSWORD`,
/// `AUTHENTICATION_FAILED`.
const NOT_BELIEVED: [u32; 4] = [192, 193, 194, 516];
/// `ACCESS_DENIED`.
const ACCESS_DENIED: u32 = 497;

/// The files that say who we are and whom we trust.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// User and password.
    user: Option<(PathBuf, PathBuf)>,
    /// Authorities; `None` for the public ones.
    authorities: Option<PathBuf>,
}

impl Files {
    /// Of a configuration.
    pub fn of(destination: &ClickHouseDestination) -> Self {
        let user = destination.auth.as_ref();
        Self {
            user: user.map(|files| (files.username_file.clone(), files.password_file.clone())),
            authorities: destination.tls.as_ref().and_then(|tls| tls.ca_file.clone()),
        }
    }

    /// The same error with the files named. `username` is what was sent, and is taken out of the text.
    pub fn name(&self, error: TableError, username: Option<&str>) -> TableError {
        let text = error.to_string();
        match exception_code(&text) {
            Some(code) if NOT_BELIEVED.contains(&code) => TableError::Refused(match &self.user {
                Some((user, password)) => format!(
                    "it does not take the user of {} with the password of {} (code {code})",
                    user.display(),
                    password.display()
                ),
                None => {
                    format!("it wants a user and a password, and the configuration has none (code {code})")
                }
            }),
            Some(ACCESS_DENIED) => {
                let who = match &self.user {
                    Some((user, _)) => format!("the user of {}", user.display()),
                    None => "the user default".to_owned(),
                };
                TableError::Refused(match grant(&text) {
                    Some(grant) => format!("{who} lacks the grant {grant} (code {ACCESS_DENIED})"),
                    None => format!("{who} is not allowed to do this (code {ACCESS_DENIED})"),
                })
            }
            _ if text.contains("invalid peer certificate") => TableError::Refused(format!(
                "{text}; trusted are the {}",
                match &self.authorities {
                    Some(file) => format!("authorities of {}", file.display()),
                    None => "public authorities".to_owned(),
                }
            )),
            _ => match username.filter(|name| !name.is_empty()) {
                Some(name) => {
                    let text = text.replace(&format!("DB::Exception: {name}: "), "DB::Exception: ");
                    match error {
                        TableError::Passing(_) => TableError::Passing(text),
                        TableError::Refused(_) => TableError::Refused(text),
                    }
                }
                None => error,
            },
        }
    }
}

/// The grant that is necessary, without its columns: `INSERT ON analytics.events`.
fn grant(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("necessary to have the grant ")?;
    let end = rest.find(". (").or_else(|| rest.find(" (ACCESS_DENIED)")).unwrap_or(rest.len());
    let grant = &rest[..end];
    Some(match (grant.find('('), grant.find(") ON ")) {
        (Some(from), Some(to)) if from < to => format!("{}{}", &grant[..from], &grant[to + 1..]),
        _ => grant.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Files {
        Files {
            user: Some(("/auth/username".into(), "/auth/password".into())),
            authorities: Some("/ca/ca.crt".into()),
        }
    }

    fn named(files: &Files, text: &str) -> (bool, String) {
        let error = files.name(TableError::Passing(text.to_owned()), Some("penny"));
        (error.is_refusal(), error.to_string())
    }

    #[test]
    fn who_we_are_is_told_by_file_and_never_by_name() {
        let wrong = "Code: 516. DB::Exception: penny: Authentication failed: password is incorrect. (AUTHENTICATION_FAILED)";
        assert_eq!(
            named(&files(), wrong),
            (
                true,
                "it does not take the user of /auth/username with the password of /auth/password (code 516)"
                    .into()
            )
        );
        assert_eq!(
            named(&Files::default(), "Code: 194. DB::Exception: default: Authentication failed"),
            (true, "it wants a user and a password, and the configuration has none (code 194)".into())
        );
        let denied = "Code: 497. DB::Exception: penny: Not enough privileges. To execute this query, it's necessary to have \
                      the grant INSERT(uuid, event) ON shop.events. (ACCESS_DENIED) (version 26.7.3.1)";
        assert_eq!(
            named(&files(), denied),
            (true, "the user of /auth/username lacks the grant INSERT ON shop.events (code 497)".into())
        );
        let other = "Code: 241. DB::Exception: penny: memory limit exceeded";
        assert_eq!(named(&files(), other), (false, "Code: 241. DB::Exception: memory limit exceeded".into()));
    }

    #[test]
    fn a_certificate_that_is_not_trusted_is_told_with_the_authorities_that_are() {
        let text = "network error: invalid peer certificate: UnknownIssuer";
        let (refused, told) = named(&files(), text);
        assert!(refused && told.ends_with("trusted are the authorities of /ca/ca.crt"), "{told}");
        assert!(named(&Files::default(), text).1.ends_with("trusted are the public authorities"));
    }

    #[test]
    fn a_grant_without_columns_is_told_as_it_is() {
        let text = "it's necessary to have the grant SELECT ON shop.events. (ACCESS_DENIED)";
        assert_eq!(grant(text).as_deref(), Some("SELECT ON shop.events"));
        assert_eq!(grant("nothing of that"), None);
    }
}
