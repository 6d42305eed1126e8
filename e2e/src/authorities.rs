//! Users and ACLs in the platform's Kafka: made through the plaintext listener, whose clients are super users.

use std::{
    ffi::{CStr, CString},
    ptr,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rdkafka::{
    ClientConfig,
    admin::AdminClient,
    bindings::{self as sys, rd_kafka_admin_op_t as Request},
    client::DefaultClientContext,
};

use crate::acls::{Acl, Name, Operation, Resource};

/// How long the broker has for an answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// One who may change users and ACLs.
pub struct Authorities {
    admin: AdminClient<DefaultClientContext>,
}

impl Authorities {
    /// A client of this listener.
    ///
    /// # Errors
    /// librdkafka refuses the address.
    pub fn at(bootstrap_servers: &str) -> Result<Self> {
        Ok(Self { admin: ClientConfig::new().set("bootstrap.servers", bootstrap_servers).create()? })
    }

    /// Makes a user with a password, or gives the user another password.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    pub fn set_password(&self, user: &str, password: &str) -> Result<()> {
        let name = CString::new(user)?;
        // SAFETY: name and password live during the call, which copies both; a null salt is one that librdkafka draws.
        let alteration = unsafe {
            sys::rd_kafka_UserScramCredentialUpsertion_new(
                name.as_ptr(),
                sys::rd_kafka_ScramMechanism_t::RD_KAFKA_SCRAM_MECHANISM_SHA_512,
                4096,
                password.as_ptr(),
                password.len(),
                ptr::null(),
                0,
            )
        };
        self.alter_user(alteration).with_context(|| format!("setting the password of {user}"))
    }

    /// Takes a user away.
    ///
    /// # Errors
    /// Kafka does not answer, or has no such user.
    pub fn remove_user(&self, user: &str) -> Result<()> {
        let name = CString::new(user)?;
        // SAFETY: the name lives during the call, which copies it.
        let alteration = unsafe {
            sys::rd_kafka_UserScramCredentialDeletion_new(
                name.as_ptr(),
                sys::rd_kafka_ScramMechanism_t::RD_KAFKA_SCRAM_MECHANISM_SHA_512,
            )
        };
        self.alter_user(alteration).with_context(|| format!("removing the user {user}"))
    }

    fn alter_user(&self, alteration: *mut sys::rd_kafka_UserScramCredentialAlteration_t) -> Result<()> {
        let mut alterations = [alteration];
        let event =
            self.request(Request::RD_KAFKA_ADMIN_OP_ALTERUSERSCRAMCREDENTIALS, |client, options, queue| {
                // SAFETY: all live during the call, which copies the alteration; it is ours to destroy afterwards.
                unsafe {
                    sys::rd_kafka_AlterUserScramCredentials(
                        client,
                        alterations.as_mut_ptr(),
                        1,
                        options,
                        queue,
                    );
                    sys::rd_kafka_UserScramCredentialAlteration_destroy(alterations[0]);
                }
            })?;
        // SAFETY: the answer is to this request, and its parts live as long as it does.
        unsafe {
            let mut count = 0;
            let responses = sys::rd_kafka_AlterUserScramCredentials_result_responses(
                sys::rd_kafka_event_AlterUserScramCredentials_result(event.0),
                &mut count,
            );
            ensure!(count == 1, "{count} answers about one user");
            let error = sys::rd_kafka_AlterUserScramCredentials_result_response_error(*responses);
            refused(error)
        }
    }

    /// Allows a principal (`User:name`) what the ACL says, for the resources of this prefix.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    pub fn allow(&self, principal: &str, prefix: &str, acl: &Acl) -> Result<()> {
        let parts = Parts::of(principal, prefix, acl)?;
        let mut reason = [0; 256];
        // SAFETY: the strings live during the call, which copies them, and the buffer is as long as it says.
        let binding = unsafe {
            sys::rd_kafka_AclBinding_new(
                parts.resource,
                parts.name.as_ptr(),
                parts.pattern,
                parts.principal.as_ptr(),
                c"*".as_ptr(),
                parts.operation,
                sys::rd_kafka_AclPermissionType_t::RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW,
                reason.as_mut_ptr(),
                reason.len(),
            )
        };
        ensure!(!binding.is_null(), "librdkafka takes no such ACL: {acl}");
        let mut bindings = [binding];
        let event = self.request(Request::RD_KAFKA_ADMIN_OP_CREATEACLS, |client, options, queue| {
            // SAFETY: as for users.
            unsafe {
                sys::rd_kafka_CreateAcls(client, bindings.as_mut_ptr(), 1, options, queue);
                sys::rd_kafka_AclBinding_destroy(bindings[0]);
            }
        })?;
        // SAFETY: as for users.
        unsafe {
            let mut count = 0;
            let results = sys::rd_kafka_CreateAcls_result_acls(
                sys::rd_kafka_event_CreateAcls_result(event.0),
                &mut count,
            );
            ensure!(count == 1, "{count} answers about one ACL");
            refused(sys::rd_kafka_acl_result_error(*results))
        }
        .with_context(|| format!("allowing {principal} {acl}"))
    }

    /// Takes back what [`Authorities::allow`] gave.
    ///
    /// # Errors
    /// Kafka does not answer, refuses, or has no such ACL.
    pub fn take_back(&self, principal: &str, prefix: &str, acl: &Acl) -> Result<()> {
        let parts = Parts::of(principal, prefix, acl)?;
        let removed =
            self.delete(parts.resource, Some(&parts.name), parts.pattern, &parts.principal, parts.operation)?;
        ensure!(removed == 1, "{removed} ACLs are {acl} for {principal}");
        Ok(())
    }

    /// Takes every ACL of a principal away and says how many there were.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    pub fn take_all(&self, principal: &str) -> Result<usize> {
        self.delete(
            sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_ANY,
            None,
            sys::rd_kafka_ResourcePatternType_t::RD_KAFKA_RESOURCE_PATTERN_ANY,
            &CString::new(principal)?,
            sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_ANY,
        )
    }

    fn delete(
        &self,
        resource: sys::rd_kafka_ResourceType_t,
        name: Option<&CStr>,
        pattern: sys::rd_kafka_ResourcePatternType_t,
        principal: &CStr,
        operation: sys::rd_kafka_AclOperation_t,
    ) -> Result<usize> {
        let mut reason = [0; 256];
        // SAFETY: as for bindings; a filter's name may be null.
        let filter = unsafe {
            sys::rd_kafka_AclBindingFilter_new(
                resource,
                name.map_or(ptr::null(), CStr::as_ptr),
                pattern,
                principal.as_ptr(),
                ptr::null(),
                operation,
                sys::rd_kafka_AclPermissionType_t::RD_KAFKA_ACL_PERMISSION_TYPE_ANY,
                reason.as_mut_ptr(),
                reason.len(),
            )
        };
        ensure!(!filter.is_null(), "librdkafka takes no such filter");
        let mut filters = [filter];
        let event = self.request(Request::RD_KAFKA_ADMIN_OP_DELETEACLS, |client, options, queue| {
            // SAFETY: as for users; a filter is of the same type as a binding.
            unsafe {
                sys::rd_kafka_DeleteAcls(client, filters.as_mut_ptr(), 1, options, queue);
                sys::rd_kafka_AclBinding_destroy(filters[0]);
            }
        })?;
        // SAFETY: as for users.
        unsafe {
            let mut count = 0;
            let responses = sys::rd_kafka_DeleteAcls_result_responses(
                sys::rd_kafka_event_DeleteAcls_result(event.0),
                &mut count,
            );
            ensure!(count == 1, "{count} answers about one filter");
            refused(sys::rd_kafka_DeleteAcls_result_response_error(*responses))?;
            let mut removed = 0;
            sys::rd_kafka_DeleteAcls_result_response_matching_acls(*responses, &mut removed);
            Ok(removed)
        }
    }

    fn request(
        &self,
        kind: Request,
        send: impl FnOnce(*mut sys::rd_kafka_t, *const sys::rd_kafka_AdminOptions_t, *mut sys::rd_kafka_queue_t),
    ) -> Result<Event> {
        let client = self.admin.inner().native_ptr();
        let patience = i32::try_from(PATIENCE.as_millis())?;
        // SAFETY: the client lives as long as `self`; options and queue are ours until they are destroyed, and a late answer
        // to a destroyed queue is thrown away by librdkafka.
        let event = unsafe {
            let options = sys::rd_kafka_AdminOptions_new(client, kind);
            let queue = sys::rd_kafka_queue_new(client);
            let mut reason = [0; 256];
            sys::rd_kafka_AdminOptions_set_request_timeout(
                options,
                patience,
                reason.as_mut_ptr(),
                reason.len(),
            );
            send(client, options, queue);
            let event = sys::rd_kafka_queue_poll(queue, patience + 1000);
            sys::rd_kafka_AdminOptions_destroy(options);
            sys::rd_kafka_queue_destroy(queue);
            event
        };
        if event.is_null() {
            bail!("Kafka did not answer within {} s", PATIENCE.as_secs());
        }
        let event = Event(event);
        // SAFETY: the event lives; its text belongs to it and is copied.
        unsafe {
            if sys::rd_kafka_event_error(event.0) != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                let text = CStr::from_ptr(sys::rd_kafka_event_error_string(event.0));
                return Err(anyhow!("Kafka: {}", text.to_string_lossy()));
            }
        }
        Ok(event)
    }
}

/// An answer of Kafka, ours to destroy.
struct Event(*mut sys::rd_kafka_event_t);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody else has it, and `drop` runs once.
        unsafe { sys::rd_kafka_event_destroy(self.0) }
    }
}

/// # Safety
/// The error is null, or lives during the call.
unsafe fn refused(error: *const sys::rd_kafka_error_t) -> Result<()> {
    // SAFETY: the accessors take null for no error; the text is copied.
    unsafe {
        if sys::rd_kafka_error_code(error) == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(());
        }
        bail!("Kafka refuses: {}", CStr::from_ptr(sys::rd_kafka_error_string(error)).to_string_lossy())
    }
}

/// An ACL in librdkafka's words.
struct Parts {
    principal: CString,
    name: CString,
    resource: sys::rd_kafka_ResourceType_t,
    pattern: sys::rd_kafka_ResourcePatternType_t,
    operation: sys::rd_kafka_AclOperation_t,
}

impl Parts {
    fn of(principal: &str, prefix: &str, acl: &Acl) -> Result<Self> {
        use sys::{
            rd_kafka_AclOperation_t as O, rd_kafka_ResourcePatternType_t as P, rd_kafka_ResourceType_t as R,
        };
        let (name, pattern) = match acl.name {
            Name::Literal(name) => (name, P::RD_KAFKA_RESOURCE_PATTERN_LITERAL),
            Name::Prefixed(name) => (name, P::RD_KAFKA_RESOURCE_PATTERN_PREFIXED),
        };
        Ok(Self {
            principal: CString::new(principal)?,
            name: CString::new(format!("{prefix}{name}"))?,
            resource: match acl.resource {
                Resource::Topic => R::RD_KAFKA_RESOURCE_TOPIC,
                Resource::Group => R::RD_KAFKA_RESOURCE_GROUP,
                Resource::TransactionalId => R::RD_KAFKA_RESOURCE_TRANSACTIONAL_ID,
            },
            pattern,
            operation: match acl.operation {
                Operation::Read => O::RD_KAFKA_ACL_OPERATION_READ,
                Operation::Write => O::RD_KAFKA_ACL_OPERATION_WRITE,
                Operation::Create => O::RD_KAFKA_ACL_OPERATION_CREATE,
                Operation::Alter => O::RD_KAFKA_ACL_OPERATION_ALTER,
                Operation::AlterConfigs => O::RD_KAFKA_ACL_OPERATION_ALTER_CONFIGS,
                Operation::Describe => O::RD_KAFKA_ACL_OPERATION_DESCRIBE,
                Operation::Delete => O::RD_KAFKA_ACL_OPERATION_DELETE,
            },
        })
    }
}
