package states

// The history of a partition, in the families
//
//	History   offset                     -> an event that was applied: see Event
//	Event     layer, event's id, scope   -> offset
//	Type      type 00 time offset        -> nothing
//	Conflict  aggregate, event's id      -> sequence number of an event that was not applied, because another one with
//	                                        that number or a later one was
//	Keyframe  aggregate, version         -> fold.AppendAggregate, at every 64th version
//
// An aggregate in a key is its length in two bytes and its id. Versions, offsets and
// times are eight bytes, big-endian; the sign bit of times is inverted. All entries are
// a pure function of the log.
//
// An entry of History contains the event as it came, so a question about the past needs
// no request to Kafka, and is answered after retention has deleted the event. The
// entries are in the order of the log, so they are written once and never moved, which
// makes the index cheap. Each entry has the offset of the previous event of the same
// aggregate: the events of an aggregate are found by going back from its state or from
// a keyframe. For questions that are rare, this is as good as keys by aggregate, which
// compactions would sort again and again.
//
// The scope of an event's id is its aggregate, if ids are compared within aggregates; see
// eventName. Ids of events have no order. They are kept in layers, those of the filter, so entries
// of a full layer are not moved either.

// KeyframeEvery is the number of versions from one keyframe to the next: it bounds the
// number of events that are folded to find a past state.
const KeyframeEvery = 64

// HeaderSchemaID is the header with the schema id of a value that is not framed.
const HeaderSchemaID = "__value_schema_id"
