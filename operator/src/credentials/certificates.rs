//! Certificates for the tests, made once per run.

use std::sync::LazyLock;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// PEM texts.
pub struct Certificates {
    /// An authority.
    pub ca: String,
    /// Another authority.
    pub other_ca: String,
    /// A certificate of the first authority, and its key.
    pub client: (String, String),
    /// What the client has after a renewal.
    pub renewed: (String, String),
}

/// The same for all tests of a run.
pub static CERTIFICATES: LazyLock<Certificates> = LazyLock::new(|| {
    let (ca, issuer) = authority("first");
    let (other_ca, _) = authority("other");
    Certificates { ca, other_ca, client: client(&issuer), renewed: client(&issuer) }
});

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn authority(name: &str) -> (String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    (pem, Issuer::new(params, key))
}

fn client(issuer: &Issuer<'static, KeyPair>) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    (params("web").signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}
