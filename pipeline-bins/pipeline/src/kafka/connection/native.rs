//! Giving a running client other credentials: two calls of librdkafka that the crate does not wrap.

use std::{
    ffi::{CStr, CString, c_char},
    ptr,
};

use rdkafka::types::RDKafka;
use rdkafka_sys as sys;

use crate::kafka::security::Token;

/// Sets user and password for connections that are made from now on, and wakes the client up to make them.
///
/// # Safety
/// `client` is a client that lives during the call.
pub(super) unsafe fn set_password(
    client: *mut RDKafka,
    username: &str,
    password: &str,
) -> Result<(), String> {
    let (Ok(username), Ok(password)) = (CString::new(username), CString::new(password)) else {
        return Err("user or password contain a NUL character".to_owned());
    };
    // SAFETY: the client lives by contract; both texts are copied; a returned error is ours, read and destroyed once.
    unsafe {
        let error = sys::rd_kafka_sasl_set_credentials(client, username.as_ptr(), password.as_ptr());
        if error.is_null() {
            return Ok(());
        }
        let reason = CStr::from_ptr(sys::rd_kafka_error_string(error)).to_string_lossy().into_owned();
        sys::rd_kafka_error_destroy(error);
        Err(reason)
    }
}

/// Sets the token for connections that are made from now on, and for those that authenticate again.
///
/// # Safety
/// `client` is a client that lives during the call.
pub(super) unsafe fn set_token(client: *mut RDKafka, token: &Token) -> Result<(), String> {
    let token = token.to_native();
    let (Ok(text), Ok(principal)) = (CString::new(token.token), CString::new(token.principal_name)) else {
        return Err("the token contains a NUL character".to_owned());
    };
    let mut reason = [0 as c_char; 512];
    // SAFETY: the client lives by contract; the texts are copied; librdkafka ends what it writes into the buffer, whose
    // length it is told, with a NUL.
    unsafe {
        let error = sys::rd_kafka_oauthbearer_set_token(
            client,
            text.as_ptr(),
            token.lifetime_ms,
            principal.as_ptr(),
            ptr::null_mut(),
            0,
            reason.as_mut_ptr(),
            reason.len(),
        );
        if error == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(());
        }
        let reason = CStr::from_ptr(reason.as_ptr()).to_string_lossy().into_owned();
        if let Ok(told) = CString::new(reason.as_str()) {
            // So that it asks again in ten seconds.
            sys::rd_kafka_oauthbearer_set_token_failure(client, told.as_ptr());
        }
        Err(reason)
    }
}
