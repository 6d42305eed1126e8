//! What the operator can do and the components of this version cannot: refused, since they would go without it silently.
//!
//! Whoever makes a component use one of these takes its line away here; with the last one goes this file, and the option
//! that lets them through.

use super::{Destination, Problem, Problems, ValidatedPipeline};

/// Refuses a pipeline that needs something which the components do not do yet.
///
/// # Errors
/// Each of those fields.
pub fn refuse(pipeline: &ValidatedPipeline) -> Result<(), Problems> {
    let mut problems = Vec::new();
    let mut refuse = |field: String, would: &str| {
        problems.push(Problem::Field {
            field,
            message: format!(
                "the components of this version cannot do this yet and would {would}; remove it"
            ),
        });
    };
    if pipeline.kafka.trust.is_some() {
        refuse("spec.kafka.tls".to_owned(), "connect without encryption");
    }
    if pipeline.kafka.identity.is_some() {
        refuse("spec.kafka.auth".to_owned(), "connect as nobody");
    }
    for export in &pipeline.exports {
        let Destination::ClickHouse { trust, user, .. } = &export.destination else { continue };
        let field = |name: &str| format!("spec.exports[{}].clickhouse.{name}", export.name);
        if trust.pem().is_some() {
            refuse(field("tls"), "trust the public authorities alone");
        }
        if user.is_some() {
            refuse(field("auth"), "connect as the default user");
        }
    }
    Problems::check(problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::tests::{FULL, pipeline, secured_references, secured_yaml},
        validate::validate,
    };

    #[test]
    fn a_pipeline_that_would_go_without_encryption_silently_is_refused() {
        assert_eq!(refuse(&pipeline(FULL)), Ok(()));
        let object = serde_yaml_ng::from_str(&secured_yaml("scramSha512: {secret: web-kafka}")).unwrap();
        let secured = validate(&object, &secured_references(), "0.1.0").unwrap();
        let problems = refuse(&secured).unwrap_err();
        let fields: Vec<String> = problems
            .iter()
            .map(|problem| problem.to_string().split_once(": ").unwrap().0.to_owned())
            .collect();
        assert_eq!(
            fields,
            [
                "spec.kafka.tls",
                "spec.kafka.auth",
                "spec.exports[warehouse].clickhouse.tls",
                "spec.exports[warehouse].clickhouse.auth"
            ]
        );
    }
}
