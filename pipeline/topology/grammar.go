package topology

import (
	"maps"
	"slices"

	"millrace/pipeline/stage"
)

// The grammar of topology.yaml. The file is decoded by it, and the JSON Schema
// for editors is made from it.

// The values of a pipeline's guarantee, a topic's envelope, a projection's
// partitioner, on_gap and publish, and a stage's on_error.
const (
	ExactlyOnce = "exactly_once"
	AtLeastOnce = "at_least_once"

	envelopeMillrace = "millrace"
	envelopeNone     = "none"

	partitionerKey   = "key"
	partitionerOther = "other"

	onGapBlock = "block"
	onGapApply = "apply"

	publishEvery = "every"

	onErrorDeadLetter = "dead_letter"
	onErrorSkip       = "skip"
	onErrorStop       = "stop"
)

var topicParams = []stage.Param{
	{Name: "partitions", Form: stage.Number, Required: true, Min: 1, Max: 100_000,
		Doc: "How many partitions the topic has. It is created with them; another number of an existing topic is an error."},
	{Name: "replication", Form: stage.Number, Min: 1, Max: 1000,
		Doc: "How many brokers hold each partition, when the topic is created. Without it, the brokers decide."},
	{Name: "types", Form: stage.Words,
		Doc: "The event types on the topic: names of records in the schemas directory, short or with namespace. " +
			"A topic that a pipeline writes need not say: it has the types that come out of the pipeline."},
	{Name: "config", Form: stage.Texts,
		Doc: "Settings of the topic as Kafka names them, such as retention.ms, when it is created."},
	{Name: "envelope", Form: stage.Word, Values: []string{envelopeMillrace, envelopeNone},
		Doc: "What its records carry beside their data: the fields id, type and timestamp, or nothing that Millrace knows of " +
			"(millrace if not given, but of a topic that a pipeline writes, what its events came with)."},
	{Name: "headers", Form: stage.Word, Values: []string{string(CloudEvents), string(NoHeaders)},
		Doc: "The headers of its records. With cloudevents, what producers and pipelines write has the attributes of a CloudEvent in binary mode, ce_id and so on; with none, it has no such headers. " +
			"If not given, it is as on the topic that a pipeline reads."},
	{Name: "id", Form: stage.Expression, Doc: "What stands for an event's id, on a topic with envelope: none. Without it, its events have none: projections find no duplicates among them."},
	{Name: "time", Form: stage.Expression, Doc: "What stands for an event's time, on a topic with envelope: none. Without it, the record's timestamp does."},
	{Name: "key", Form: stage.Expression, Doc: "What stands for the aggregate's id, on a topic with envelope: none. Without it, the record's key does. It is the record's key of what a pipeline writes."},
}

var tableParams = []stage.Param{
	{Name: "topic", Form: stage.Word, Doc: "A compacted topic whose newest record under each key is a row. Give this or file."},
	{Name: "file", Form: stage.Word, Doc: "A file of rows, .json, .jsonl or .csv; the path is relative to the topology. Give this or topic."},
	{Name: "key", Form: stage.Word, Doc: "The field that is a row's key; of a file."},
	{Name: "schema", Form: stage.Word, Doc: "The record that a row is, in the schemas directory; of a file."},
}

// commonParams are those of every stage.
var commonParams = []stage.Param{
	{Name: "name", Form: stage.Word,
		Doc: "The stage's name in metrics, dead letters and saved state. It is unique in the pipeline, and is the kind of the stage if not given."},
	{Name: "on", Form: stage.Words,
		Doc: "The event types that the stage is for; all if not given. Others pass through it untouched."},
	{Name: "on_error", Form: stage.Word, Values: []string{onErrorDeadLetter, onErrorSkip, onErrorStop}, Default: onErrorDeadLetter,
		Doc: "What becomes of an event that the stage rejects: a dead letter, or it goes on as if the stage were not there, or the worker stops."},
}

func pipelineParams(kinds map[string]stage.Kind) []stage.Param {
	var stages []stage.Param
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		stages = append(stages, stage.Param{
			Name: name, Form: stage.Group, Doc: kinds[name].Doc,
			Params: slices.Concat(kinds[name].Params, commonParams),
		})
	}
	return []stage.Param{
		{Name: "from", Form: stage.Word, Required: true, Doc: "The topic to read."},
		{Name: "stages", Form: stage.Choices, Doc: "What is done to each event, in this order.", Params: stages},
		{Name: "to", Form: stage.Word, Required: true, Doc: "The topic to write what passes to."},
		{Name: "dead_letter", Form: stage.Word, Required: true,
			Doc: "The topic for records that cannot be decoded and for events that a stage rejects. They are kept byte for byte."},
		{Name: "receipts", Form: stage.Word,
			Doc: "The topic for receipts: for each event that is filtered or becomes a dead letter, which stage that was, under the event's id. Projectors behind the pipeline answer from them."},
		{Name: "guarantee", Form: stage.Word, Values: []string{ExactlyOnce, AtLeastOnce}, Default: ExactlyOnce,
			Doc: "exactly_once commits outputs and offsets in one transaction; at_least_once may write an event twice after a crash."},
	}
}

var projectionParams = []stage.Param{
	{Name: "from", Form: stage.Word, Required: true, Doc: "The topic of the events to fold."},
	{Name: "key", Form: stage.Word, Doc: "The path of the aggregate's id in each event type under on. It may be left out where the topic has envelope: none: then the events' key is the aggregate's id."},
	{Name: "state", Form: stage.Word, Required: true, Doc: "The record that the state of an aggregate is, in the schemas directory. Each of its fields has a default."},
	{Name: "on", Form: stage.Named, Required: true, Doc: "What an event of each type does; the types that are not here do nothing.", Params: []stage.Param{
		{Name: "set", Form: stage.Assignments,
			Doc: "From fields of the state to their new values. The event's fields are at top level, those of the state, as it was before the event, under state."},
		{Name: "delete", Form: stage.Flag, Default: "false", Doc: "Whether the aggregate is gone after this event. Its last state is kept, and no late event brings it back."},
	}},
	{Name: "snapshots", Form: stage.Word, Required: true, Doc: "The compacted topic to publish the states on. It need not be declared."},
	{Name: "partitioner", Form: stage.Word, Values: []string{partitionerKey, partitionerOther}, Default: partitionerKey,
		Doc: "What decides in which partition an aggregate's events stand. By key, murmur2 of the aggregate's id does, as with Kafka's own producers, " +
			"and an event that stands elsewhere is not folded, for the aggregate would have two states. With other, whoever writes the topic sees to it, and nothing is checked."},
	{Name: "window", Form: stage.Group, Doc: "A state for each key and stretch of event time, instead of one for each key. Its id is KEY@START: u-1@2026-01-01T10:00:00Z.", Params: []stage.Param{
		{Name: "tumbling", Form: stage.Duration, Doc: "The length of windows that follow one upon the other. Give this or hopping."},
		{Name: "hopping", Form: stage.Duration, Doc: "The length of windows that overlap. Give this or tumbling."},
		{Name: "every", Form: stage.Duration, Doc: "How long after one hopping window the next begins."},
	}},
	{Name: "grace", Form: stage.Duration, Default: "0s", Doc: "How long after its end a window still takes events. Time is that of the events: the latest in the partition so far."},
	{Name: "keep", Form: stage.Duration, Doc: "How long after its end a window's state is kept, by the same time; for ever if not given. Then its snapshot is deleted."},
	{Name: "late", Form: stage.Word, Doc: "The topic for events that a window no longer takes, as dead letters. Without it, they are counted only."},
	{Name: "wait", Form: stage.Number, Min: 1, Max: 100_000, Doc: "How many records of the partition an event waits for the one before it, by the field sequence; 1,000 if not given."},
	{Name: "on_gap", Form: stage.Word, Values: []string{onGapBlock, onGapApply}, Default: onGapBlock,
		Doc: "What becomes of an event that waited in vain: block keeps it and all later ones of its aggregate until somebody releases it, apply goes on without what is missing."},
	{Name: "publish", Form: stage.Group, Values: []string{publishEvery}, Doc: "When snapshots are published: with every batch that changed something (every, or not given), or, to publish less, as one of these says.", Params: []stage.Param{
		{Name: "events", Form: stage.Number, Min: 1, Max: 1 << 40, Doc: "After so many records of a partition."},
		{Name: "every", Form: stage.Duration, Doc: "After so long."},
		{Name: "recovery", Form: stage.Duration, Doc: "So often that a partition whose store is lost is folded again from its snapshots within this time, as measured."},
	}},
	{Name: "max_state", Form: stage.Number, Min: 1, Max: 1 << 30, Doc: "How many bytes a state may have; 900,000 if not given. An event that would make it larger cannot be folded."},
}

func fileParams(kinds map[string]stage.Kind) []stage.Param {
	return []stage.Param{
		{Name: "name", Form: stage.Word, Required: true, Doc: "The name of the topology: a part of the names of consumer groups."},
		{Name: "topics", Form: stage.Named, Required: true, Doc: "The topics, by name.", Params: topicParams},
		{Name: "tables", Form: stage.Named, Doc: "What stages can look up by key, by name.", Params: tableParams},
		{Name: "pipelines", Form: stage.Named, Doc: "Each reads a topic, runs stages over its events and writes what passes.", Params: pipelineParams(kinds)},
		{Name: "encryption", Form: stage.Group, Doc: "How fields that schemas tag as personal are encrypted, each subject's with a key of its own.", Params: encryptionParams},
		{Name: "projections", Form: stage.Named, Doc: "Each folds the events of a topic into the states of aggregates.", Params: projectionParams},
	}
}
