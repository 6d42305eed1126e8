//! Reads from ClickHouse, over its HTTP interface, as JSON.

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

/// A ClickHouse server.
#[derive(Clone, Debug)]
pub struct Warehouse {
    url: String,
    http: reqwest::Client,
}

impl Warehouse {
    /// A server at this URL (`http://127.0.0.1:18123`).
    pub fn at(url: impl Into<String>) -> Self {
        // What makes a client of Kubernetes does it as well; whoever needs none has nobody else.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { url: url.into(), http: reqwest::Client::new() }
    }

    /// Runs a statement and gives the text of the answer.
    ///
    /// # Errors
    /// The server is not reached, or refuses the statement.
    pub async fn text(&self, sql: &str) -> Result<String> {
        let response = self
            .http
            .post(&self.url)
            .query(&[("output_format_json_quote_64bit_integers", "0")])
            .body(sql.to_owned())
            .timeout(std::time::Duration::from_secs(60))
            .send()
            .await
            .with_context(|| format!("ClickHouse at {} does not answer", self.url))?;
        let status = response.status();
        let text = response.text().await?;
        if !status.is_success() {
            bail!("ClickHouse refuses {sql:?}: {text}");
        }
        Ok(text)
    }

    /// Runs a query and reads its rows.
    ///
    /// # Errors
    /// As [`Self::text`], or a row is not of the type.
    pub async fn rows<T: DeserializeOwned>(&self, sql: &str) -> Result<Vec<T>> {
        let text = self.text(&format!("{sql} FORMAT JSONEachRow")).await?;
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("row {line:?} of {sql:?}")))
            .collect()
    }

    /// Runs a query that gives one number.
    ///
    /// # Errors
    /// As [`Self::text`], or the answer is not one number.
    pub async fn number(&self, sql: &str) -> Result<u64> {
        let text = self.text(sql).await?;
        text.trim().parse().with_context(|| format!("{sql:?} gave {text:?}, not a number"))
    }
}

/// A name in back-quotes, as ClickHouse takes it.
pub fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}
