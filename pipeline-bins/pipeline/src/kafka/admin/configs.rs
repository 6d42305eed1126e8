//! Configuration of topics: read it with where each value comes from, and change single keys of it.

use std::{collections::BTreeMap, ffi::CString, time::Duration};

use rdkafka::{
    client::{Client, ClientContext},
    error::RDKafkaErrorCode,
};
use rdkafka_sys::{self as sys, rd_kafka_admin_op_t as Operation};

use super::{
    AdminError, is_unknown_topic, naming,
    native::{self, Owned, RequestOptions},
};

/// One configuration value of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigValue {
    /// The value; `None` when Kafka keeps it secret or has none.
    pub value: Option<String>,
    /// Where it comes from.
    pub source: ConfigSource,
}

/// Where a configuration value of a topic comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    /// Somebody set it on this topic.
    Topic,
    /// It is the brokers': set on them, or Kafka's own default.
    Broker,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConfigChange {
    /// Set the key on the topic.
    Set {
        /// Kafka's name of the key.
        key: String,
        /// New value.
        value: String,
    },
    /// Take the topic's own value away, so that the brokers' holds.
    Reset {
        /// Kafka's name of the key.
        key: String,
    },
}

/// The whole configuration of each of `topics`, by key. Topics that do not exist are left out.
pub fn describe_configs<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    timeout: Duration,
) -> Result<BTreeMap<String, BTreeMap<String, ConfigValue>>, AdminError> {
    if topics.is_empty() {
        return Ok(BTreeMap::new());
    }
    let what = format!("read the configuration of topics {}", naming(topics));
    let resources = topics.iter().map(|topic| topic_resource(&what, topic)).collect::<Result<Vec<_>, _>>()?;
    let mut pointers: Vec<_> = resources.iter().map(Owned::as_ptr).collect();
    let event = native::request(
        client,
        &what,
        Operation::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS,
        RequestOptions::default(),
        timeout,
        // SAFETY: all live during the call, which copies the resources.
        |handle, options, queue| unsafe {
            sys::rd_kafka_DescribeConfigs(handle, pointers.as_mut_ptr(), pointers.len(), options, queue);
        },
    )?;

    let mut described = BTreeMap::new();
    // SAFETY: the answer to DescribeConfigs holds a result of that kind; everything read from it lives as long as `event`
    // and is copied. The sources of a topic's values are among those that the bindings know.
    unsafe {
        let result = sys::rd_kafka_event_DescribeConfigs_result(event.as_ptr());
        let mut count = 0;
        let list = sys::rd_kafka_DescribeConfigs_result_resources(result, &mut count);
        for &resource in native::elements(&event, list, count) {
            let name = native::text_of(sys::rd_kafka_ConfigResource_name(resource));
            match RDKafkaErrorCode::from(sys::rd_kafka_ConfigResource_error(resource)) {
                RDKafkaErrorCode::NoError => {}
                code if is_unknown_topic(code) => continue,
                code => {
                    return Err(AdminError::new(
                        &format!("read the configuration of topic {name:?}"),
                        code,
                        &native::text_of(sys::rd_kafka_ConfigResource_error_string(resource)),
                    ));
                }
            }
            let mut count = 0;
            let list = sys::rd_kafka_ConfigResource_configs(resource, &mut count);
            let values = native::elements(&event, list, count)
                .iter()
                .map(|&entry| {
                    let value = sys::rd_kafka_ConfigEntry_value(entry);
                    let source = match sys::rd_kafka_ConfigEntry_source(entry) {
                        sys::rd_kafka_ConfigSource_t::RD_KAFKA_CONFIG_SOURCE_DYNAMIC_TOPIC_CONFIG => {
                            ConfigSource::Topic
                        }
                        _ => ConfigSource::Broker,
                    };
                    (
                        native::text_of(sys::rd_kafka_ConfigEntry_name(entry)),
                        ConfigValue { value: (!value.is_null()).then(|| native::text_of(value)), source },
                    )
                })
                .collect();
            described.insert(name, values);
        }
    }
    Ok(described)
}

/// Changes the given keys of `topic` and leaves every other key as it is (Kafka's IncrementalAlterConfigs). All of the
/// changes happen, or none.
pub fn change_config<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    changes: &[ConfigChange],
    timeout: Duration,
) -> Result<(), AdminError> {
    if changes.is_empty() {
        return Ok(());
    }
    let what = format!("change the configuration of topic {topic:?}");
    let resource = topic_resource(&what, topic)?;
    for change in changes {
        let (key, value, operation) = match change {
            ConfigChange::Set { key, value } => {
                (key, Some(value), sys::rd_kafka_AlterConfigOpType_t::RD_KAFKA_ALTER_CONFIG_OP_TYPE_SET)
            }
            ConfigChange::Reset { key } => {
                (key, None, sys::rd_kafka_AlterConfigOpType_t::RD_KAFKA_ALTER_CONFIG_OP_TYPE_DELETE)
            }
        };
        let name = native::c_string(&what, key)?;
        let value: Option<CString> = value.map(|value| native::c_string(&what, value)).transpose()?;
        // SAFETY: all live during the call, which copies both texts; a returned error is ours to destroy.
        let error = unsafe {
            Owned::new(
                sys::rd_kafka_ConfigResource_add_incremental_config(
                    resource.as_ptr(),
                    name.as_ptr(),
                    operation,
                    value.as_ref().map_or(std::ptr::null(), |value| value.as_ptr()),
                ),
                sys::rd_kafka_error_destroy,
            )
        };
        if let Some(error) = error {
            return Err(native::error_of(&format!("{what}, key {key:?}"), error.as_ptr()));
        }
    }
    let event = native::request(
        client,
        &what,
        Operation::RD_KAFKA_ADMIN_OP_INCREMENTALALTERCONFIGS,
        RequestOptions::default(),
        timeout,
        // SAFETY: all live during the call, which copies the resources.
        |handle, options, queue| unsafe {
            sys::rd_kafka_IncrementalAlterConfigs(handle, &mut resource.as_ptr(), 1, options, queue);
        },
    )?;
    // SAFETY: the answer to IncrementalAlterConfigs holds a result of that kind; what is read from it is copied.
    unsafe {
        let result = sys::rd_kafka_event_IncrementalAlterConfigs_result(event.as_ptr());
        let mut count = 0;
        let list = sys::rd_kafka_IncrementalAlterConfigs_result_resources(result, &mut count);
        let Some(&resource) = native::elements(&event, list, count).first() else {
            return Err(AdminError::new(
                &what,
                RDKafkaErrorCode::BadMessage,
                "the answer does not name the topic",
            ));
        };
        match sys::rd_kafka_ConfigResource_error(resource) {
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            error => Err(AdminError::new(
                &what,
                error.into(),
                &native::text_of(sys::rd_kafka_ConfigResource_error_string(resource)),
            )),
        }
    }
}

fn topic_resource(what: &str, topic: &str) -> Result<Owned<sys::rd_kafka_ConfigResource_t>, AdminError> {
    let name = native::c_string(what, topic)?;
    // SAFETY: the name lives during the call, which copies it; the resource is ours.
    unsafe {
        Owned::new(
            sys::rd_kafka_ConfigResource_new(
                sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC,
                name.as_ptr(),
            ),
            sys::rd_kafka_ConfigResource_destroy,
        )
    }
    .ok_or_else(|| AdminError::new(what, RDKafkaErrorCode::InvalidArgument, "the topic has no name"))
}
