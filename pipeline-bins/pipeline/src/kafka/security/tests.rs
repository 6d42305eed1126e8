use rdkafka::producer::BaseProducer;

use super::*;

/// A certificate and its key, PEM.
fn pair() -> (String, String) {
    let pair = rcgen::generate_simple_self_signed(vec!["test".to_owned()]).unwrap();
    (pair.cert.pem(), pair.signing_key.serialize_pem())
}

fn mtls((certificate, private_key): &(String, String)) -> Auth {
    Auth::mtls(certificate.as_bytes(), private_key.as_bytes()).unwrap()
}

fn scram() -> Auth {
    Auth::scram_sha_512(b"web\n", b"correct horse\r\n").unwrap()
}

#[test]
fn the_protocol_follows_from_encryption_and_identity() {
    let tls = Some(Tls::PublicAuthorities);
    for (tls, auth, protocol) in [
        (None, None, "PLAINTEXT"),
        (None, Some(scram()), "SASL_PLAINTEXT"),
        (tls.clone(), None, "SSL"),
        (tls.clone(), Some(mtls(&pair())), "SSL"),
        (tls, Some(scram()), "SASL_SSL"),
    ] {
        assert_eq!(Security { tls, auth }.protocol(), protocol);
    }
}

#[test]
fn librdkafka_takes_every_form() {
    let pair = pair();
    let authority = Tls::from_pem(pair.0.as_bytes()).unwrap();
    let token = Auth::oauth_bearer(b"e30.eyJzdWIiOiJ4IiwiZXhwIjoxNzk1NTgyNzk3fQ.e30").unwrap();
    for (tls, auth) in [
        (None, Some(scram())),
        (Some(Tls::PublicAuthorities), None),
        (Some(authority.clone()), Some(scram())),
        (Some(authority.clone()), Some(mtls(&pair))),
        (Some(authority), Some(token)),
    ] {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "localhost:1");
        Security { tls, auth }.apply(&mut config);
        let client: Result<BaseProducer, _> = config.create();
        assert!(client.is_ok(), "{:?}", client.err());
    }
}

#[test]
fn nothing_secret_is_shown() {
    let pair = pair();
    let secret_part = pair.1.lines().nth(1).unwrap();
    let shown = format!("{:?} {:?}", scram(), mtls(&pair));
    assert!(!shown.contains("horse") && !shown.contains(secret_part), "{shown}");
    assert!(shown.contains("web"), "{shown}");
}

#[test]
fn what_cannot_be_used_is_named_and_not_repeated() {
    let (certificate, private_key) = pair();
    let no_key = private_key.replace("PRIVATE KEY", "SOMETHING");
    let locked = private_key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let broken = certificate.replace("BEGIN CERTIFICATE-----\n", "BEGIN CERTIFICATE-----\n!!!");
    for (result, part) in [
        (Tls::from_pem(b" \n").map(drop), "is empty"),
        (Tls::from_pem(b"s3cret").map(drop), "no certificate"),
        (Tls::from_pem(&[0xff, 0xfe]).map(drop), "not text"),
        (Tls::from_pem(broken.as_bytes()).map(drop), "not PEM"),
        (Auth::mtls(certificate.as_bytes(), b"s3cret").map(drop), "no private key"),
        (Auth::mtls(certificate.as_bytes(), no_key.as_bytes()).map(drop), "no private key"),
        (Auth::mtls(certificate.as_bytes(), locked.as_bytes()).map(drop), "passphrase"),
        (Auth::mtls(private_key.as_bytes(), private_key.as_bytes()).map(drop), "no certificate"),
        (Auth::scram_sha_512(b"", b"s3cret").map(drop), "name is empty"),
        (Auth::scram_sha_512(b"u", b"\n").map(drop), "password is empty"),
        (Auth::scram_sha_512(b"u", b"s3cret\nmore").map(drop), "more than one line"),
        (Auth::oauth_bearer(b"s3cret").map(drop), "JSON Web Token"),
    ] {
        let reason = result.unwrap_err();
        assert!(reason.contains(part) && !reason.contains("s3cret"), "{part}: {reason}");
    }
}
