//! The coordinator: keeps the queue and the history in Postgres, talks to workers over sessions,
//! and answers users over gRPC and HTTP on one port.
//!
//! `grpc`, `web` and `reconcilers` call `app`; `app` decides with `qctl-server-core`, writes through
//! `store`, and acts on what was committed through `sessions` and `changes`.

pub mod app;
pub mod auth;
pub mod config;
pub mod database;
mod grpc;
mod reconcilers;
pub mod sessions;
pub mod store;
mod telemetry;
mod web;
