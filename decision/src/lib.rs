//! What Davy decides about an account, and why: pure.
//!
//! No file, network, clock or randomness: the time is an argument, and an input with its policies gives the same plan for ever.
//!
//! | module | what |
//! |---|---|
//! | [`time`] | points in time and spans |
//! | [`account`] | facts, each with the time it is of |
//! | [`episode`] | an account's evidence, added up |
//! | [`settings`] | durations and limits |
//! | [`safety`], [`fleet`] | what speaks for the customer |
//! | [`policy`] | Cedar policies and the ladder's steps |
//! | [`decide`] | from an input to a plan |
//! | [`dossier`] | all that is held of one account, and every way it changes |
//! | [`action`], [`order`] | what is asked of the control plane, and how far it is |
//! | [`case`], [`text`] | what people decide, and their reasons |
//! | [`review`] | what is usual and what is not, for those who decide |
//! | [`statement`] | what customers are told |
//! | [`reach`] | which permits nothing can ever reach |
//! | [`audit`], [`words`] | the log of what happened, hash-chained; and in words |

pub mod account;
pub mod action;
pub mod audit;
pub mod case;
pub mod decide;
pub mod dossier;
pub mod episode;
pub mod fleet;
pub mod order;
pub mod policy;
pub mod reach;
pub mod review;
pub mod safety;
pub mod settings;
pub mod statement;
pub mod text;
pub mod time;
pub mod words;
