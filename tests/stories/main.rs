//! Stories told with the real programs: one file each.

#[path = "../harness/mod.rs"]
mod harness;
#[path = "../harness/phone.rs"]
mod phone;
#[path = "../harness/receiver.rs"]
mod receiver;

mod alarms;
mod bad_input;
mod batch;
mod bed;
mod channels;
mod checkpoints;
mod commands;
mod drill;
mod faults_agent;
mod faults_coordinator;
mod faults_database;
mod faults_dispatch;
mod faults_gpu;
mod faults_logs;
mod faults_machine;
mod faults_network;
mod faults_ownership;
mod faults_processes;
mod first_job;
mod following;
mod limits;
mod logs;
mod measures;
mod notices;
mod order;
mod pages;
mod progress;
mod retries;
mod silence;
mod submit_options;
mod templates;
mod up_and_down;
