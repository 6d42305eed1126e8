//! Credentials from files, and what they are called in messages.

use std::{fs, path::Path};

use super::{Auth, Security, Tls, certificates, line, private_key};
use crate::config::{KafkaAuth, KafkaConnection};

/// A file that cannot be used, and why. Nothing of its content is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot use {file}: it {reason}")]
pub struct CredentialError {
    /// Path of the file.
    pub file: String,
    /// Completes "it …".
    pub reason: String,
}

/// Reads all that a configuration names.
pub fn load(kafka: &KafkaConnection) -> Result<Security, CredentialError> {
    let tls = match &kafka.tls {
        None => None,
        Some(tls) => Some(match &tls.ca_file {
            None => Tls::PublicAuthorities,
            Some(file) => Tls::Authorities { pem: read(file, certificates)? },
        }),
    };
    let auth = kafka.auth.as_ref().map(load_auth).transpose()?;
    Ok(Security { tls, auth })
}

/// Reads who we are.
pub(crate) fn load_auth(auth: &KafkaAuth) -> Result<Auth, CredentialError> {
    match auth {
        KafkaAuth::ScramSha512(files) => {
            let username = read(&files.username_file, line)?;
            let password = read(&files.password_file, line)?;
            Ok(Auth::ScramSha512 { username, password: super::Secret(password) })
        }
        KafkaAuth::Mtls(files) => {
            let certificate_pem = read(&files.certificate_file, certificates)?;
            let private_key_pem = super::Secret(read(&files.private_key_file, private_key)?);
            Ok(Auth::Mtls { certificate_pem, private_key_pem })
        }
        KafkaAuth::OauthBearer(file) => read(&file.token_file, Auth::oauth_bearer),
    }
}

/// Reads one file. `parse` says why its content cannot be used, without repeating it.
pub fn read<T>(file: &Path, parse: impl FnOnce(&[u8]) -> Result<T, String>) -> Result<T, CredentialError> {
    let failed = |reason: String| CredentialError { file: file.display().to_string(), reason };
    let content = fs::read(file).map_err(|error| failed(format!("cannot be read: {error}")))?;
    parse(&content).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CertificateFiles, PasswordFiles, TlsConfig, TokenFile};

    #[test]
    fn the_file_that_cannot_be_used_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for (name, content) in [("empty", ""), ("word", "s3cret"), ("line", "s3cret\n")] {
            fs::write(path(name), content).unwrap();
        }
        let tls = |ca: &str| KafkaConnection {
            tls: Some(TlsConfig { ca_file: Some(path(ca)) }),
            ..KafkaConnection::plaintext("k:1")
        };
        let auth = |auth| KafkaConnection { auth: Some(auth), ..KafkaConnection::plaintext("k:1") };
        let scram = |username: &str, password: &str| {
            auth(KafkaAuth::ScramSha512(PasswordFiles {
                username_file: path(username),
                password_file: path(password),
            }))
        };
        let mtls = auth(KafkaAuth::Mtls(CertificateFiles {
            certificate_file: path("word"),
            private_key_file: path("word"),
        }));
        let oauth = auth(KafkaAuth::OauthBearer(TokenFile { token_file: path("word") }));
        for (connection, file, reason) in [
            (tls("missing"), "missing", "cannot be read"),
            (tls("empty"), "empty", "is empty"),
            (tls("word"), "word", "has no certificate"),
            (scram("word", "missing"), "missing", "cannot be read"),
            (scram("empty", "word"), "empty", "is empty"),
            (mtls, "word", "has no certificate"),
            (oauth, "word", "is not a JSON Web Token"),
        ] {
            let error = load(&connection).unwrap_err();
            assert!(error.file.ends_with(file), "{error}");
            assert!(error.reason.contains(reason) && !error.to_string().contains("s3cret"), "{error}");
        }
        assert!(load(&scram("line", "word")).is_ok());
    }
}
