//! Signatures by the rules of Standard Webhooks: HMAC-SHA256 over `id.timestamp.body`.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Shortest and longest key, bytes.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Keys that sign; several during a rotation, the newest first.
#[derive(Clone, Default)]
pub struct SigningKeys(Vec<Vec<u8>>);

impl SigningKeys {
    /// Reads one `whsec_<base64>` per line; empty lines are skipped. The error names the line and no key.
    pub fn parse(content: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(content).map_err(|_| "the file is not text".to_owned())?;
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line.trim())) {
            if line.is_empty() {
                continue;
            }
            let key = line
                .strip_prefix("whsec_")
                .and_then(|key| STANDARD.decode(key).ok())
                .ok_or_else(|| format!("line {number} is not whsec_ followed by base64"))?;
            if !KEY_BYTES.contains(&key.len()) {
                return Err(format!("line {number}: a key has 24 to 64 bytes, this one has {}", key.len()));
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err("there is no key in the file; write one whsec_… per line".to_owned());
        }
        Ok(Self(keys))
    }

    /// Value of the header `webhook-signature`: one signature per key.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let signatures: Vec<String> = self
            .0
            .iter()
            .filter_map(|key| {
                let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
                mac.update(id.as_bytes());
                mac.update(b".");
                mac.update(timestamp.to_string().as_bytes());
                mac.update(b".");
                mac.update(body);
                Some(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
            })
            .collect();
        signatures.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the Standard Webhooks specification.
    const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn the_vector_of_the_specification_is_met() {
        let keys = SigningKeys::parse(KEY.as_bytes()).unwrap();
        assert_eq!(
            keys.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b"{\"test\": 2432232314}"),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn every_key_signs_the_newest_first() {
        let other = format!("whsec_{}", STANDARD.encode([7u8; 32]));
        let both = SigningKeys::parse(format!("{other}\n\n{KEY}\n").as_bytes()).unwrap();
        let first = SigningKeys::parse(other.as_bytes()).unwrap().sign("id", 1, b"x");
        let second = SigningKeys::parse(KEY.as_bytes()).unwrap().sign("id", 1, b"x");
        assert_ne!(first, second);
        assert_eq!(both.sign("id", 1, b"x"), format!("{first} {second}"));
    }

    #[test]
    fn bad_files_are_refused_without_repeating_them() {
        for content in ["", "\n", "secret", "whsec_!!!", "whsec_c2hvcnQ=", &format!("{KEY}\nwhsec_")] {
            let Err(error) = SigningKeys::parse(content.as_bytes()) else { panic!("{content:?} was taken") };
            assert!(!error.contains("secret") && !error.contains("c2hvcnQ"), "{error}");
        }
        assert!(SigningKeys::parse(b"\xff").is_err());
    }
}
