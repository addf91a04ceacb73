package topology

import (
	"maps"
	"slices"

	"millrace/pipeline/stage"
)

// This file declares the grammar of topology.yaml. Files are decoded by it
// (decode.go), and the JSON Schema for editors is generated from it (schema.go).

// The values of a pipeline's guarantee.
const (
	ExactlyOnce = "exactly_once"
	AtLeastOnce = "at_least_once"
)

const (
	envelopeMillrace = "millrace"
	envelopeNone     = "none"

	partitionerKey   = "key"
	partitionerOther = "other"

	onGapBlock = "block"
	onGapApply = "apply"

	duplicatesAggregate = "aggregate"
	duplicatesPartition = "partition"

	publishEvery = "every"

	onErrorDeadLetter = "dead_letter"
	onErrorSkip       = "skip"
	onErrorStop       = "stop"
)

var topicParams = append([]stage.Param{
	{Name: "partitions", Form: stage.Number, Required: true, Min: 1, Max: 100_000,
		Doc: "The number of partitions. The topic is created with it. It is an error if an existing topic has another number."},
	{Name: "replication", Form: stage.Number, Min: 1, Max: 1000,
		Doc: "The replication factor that the topic is created with. The default of the brokers applies if it is not set."},
	{Name: "types", Form: stage.Words,
		Doc: "The event types on the topic: names of records in the schemas directory, with or without namespace. " +
			"Optional for a topic that a pipeline writes: it then has the types that the pipeline writes."},
	{Name: "config", Form: stage.Texts,
		Doc: "Kafka settings that the topic is created with, such as retention.ms."},
	{Name: "envelope", Form: stage.Word, Values: []string{envelopeMillrace, envelopeNone},
		Doc: "The envelope of the records: millrace means the fields id, type and timestamp, none means that the records have no such fields. " +
			"The default is millrace; a topic that a pipeline writes inherits the envelope of the pipeline's input."},
	{Name: "headers", Form: stage.Word, Values: []string{string(CloudEvents), string(NoHeaders)},
		Doc: "The headers of the records. With cloudevents, producers and pipelines write the attributes of a CloudEvent in binary mode (ce_id and so on); with none, they remove these headers. " +
			"If not set, a topic that a pipeline writes inherits the setting of the pipeline's input."},
	{Name: "id", Form: stage.Expression, Doc: "An expression for the event's id, on a topic with envelope: none. If not set, the events have no id, and projections detect no duplicates."},
	{Name: "time", Form: stage.Expression, Doc: "An expression for the event's time, on a topic with envelope: none. If not set, it is the record's timestamp."},
	{Name: "key", Form: stage.Expression, Doc: "An expression for the aggregate's id, on a topic with envelope: none. If not set, it is the record's key. Pipelines also use it as the key of the records that they write."},
}, recordParams...)

var tableParams = []stage.Param{
	{Name: "topic", Form: stage.Word, Doc: "A compacted topic; the newest record of each key is a row. Set either topic or file."},
	{Name: "file", Form: stage.Word, Doc: "A file of rows: .json, .jsonl or .csv. The path is relative to the topology. Set either file or topic."},
	{Name: "key", Form: stage.Word, Doc: "The path of the string that is a row's key. Only for a file."},
	{Name: "schema", Form: stage.Word, Doc: "The record in the schemas directory that describes a row. Only for a file."},
}

// commonParams are the parameters of every stage.
var commonParams = []stage.Param{
	{Name: "name", Form: stage.Word,
		Doc: "The name of the stage in metrics, dead letters and saved state. It must be unique in the pipeline. The default is the kind of the stage."},
	{Name: "on", Form: stage.Words,
		Doc: "The event types that the stage handles; all types by default. Other events pass unchanged."},
	{Name: "on_error", Form: stage.Word, Values: []string{onErrorDeadLetter, onErrorSkip, onErrorStop}, Default: onErrorDeadLetter,
		Doc: "What happens to an event that the stage rejects: dead_letter writes it to the dead letter topic, skip continues as if the stage did not exist, stop stops the worker."},
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
		{Name: "stages", Form: stage.Choices, Doc: "The stages that process each event, in this order.", Params: stages},
		{Name: "to", Form: stage.Word, Required: true, Doc: "The topic for the events that pass all stages."},
		{Name: "dead_letter", Form: stage.Word, Required: true,
			Doc: "The topic for records that cannot be decoded and for events that a stage rejects. Their bytes are kept unchanged."},
		{Name: "receipts", Form: stage.Word,
			Doc: "The topic for receipts. A receipt names, under the event's id, the stage that filtered or rejected the event. Projectors that read the pipeline's output use receipts in their answers."},
		{Name: "guarantee", Form: stage.Word, Values: []string{ExactlyOnce, AtLeastOnce}, Default: ExactlyOnce,
			Doc: "exactly_once commits outputs and offsets in one transaction; at_least_once may write an event twice after a crash."},
	}
}

// ruleParams are the parameters of a rule of a projection.
var ruleParams = []stage.Param{
	{Name: "when", Form: stage.Expression,
		Doc: "A condition for the rule, over the event and the state before it. An event to which no rule applies is ignored and counted. If not set, the rule applies to every event of the type."},
	{Name: "set", Form: stage.Assignments,
		Doc: "Fields of the state and expressions for their new values. A path can lead through records that can be null; below a null, nothing is set. An expression sees the event's fields at top level, and the state before the event under state."},
	{Name: "delete", Form: stage.Expression,
		Doc: "Whether the event deletes the aggregate: true, false, or a condition over the event and the state before it. The last state is kept, and a late event does not restore the aggregate. The default is false."},
	{Name: "revive", Form: stage.Flag, Default: "false",
		Doc: "Whether the event creates a deleted aggregate again, with the next version and from the initial state. After a tombstone, every event does."},
}

var projectionParams = []stage.Param{
	{Name: "from", Form: stage.Word, Required: true, Doc: "The topic with the events to fold."},
	{Name: "key", Form: stage.Word, Doc: "The path of the aggregate's id in every event type under on. Optional if the topic has envelope: none; the key of the events is the aggregate's id then."},
	{Name: "state", Form: stage.Word, Required: true, Doc: "The record in the schemas directory that describes the state of an aggregate. Every field needs a default."},
	{Name: "on", Form: stage.Named, Required: true, Doc: "The effect of each event type on the state. It is a rule, or several under rules. Types that are not listed have no effect.",
		Params: append(slices.Clone(ruleParams), stage.Param{Name: "rules", Form: stage.Cases, Params: ruleParams,
			Doc: "Several rules, instead of set, delete, revive and when. The first one applies whose when is true."})},
	{Name: "snapshots", Form: stage.Word, Required: true, Doc: "The compacted topic for the states. It does not have to be declared under topics."},
	{Name: "partitioner", Form: stage.Word, Values: []string{partitionerKey, partitionerOther}, Default: partitionerKey,
		Doc: "How events are assigned to partitions. key means by the record key, which has the aggregate's id as its text form, as the partitioner of the topic does; " +
			"an event in another partition is not folded, because its aggregate would have two states. other means that the writer of the topic decides, and nothing is checked."},
	{Name: "window", Form: stage.Group, Doc: "Keeps one state for each key and window of event time, instead of one state for each key. The id of such a state is KEY@START: u-1@2026-01-01T10:00:00Z.", Params: []stage.Param{
		{Name: "tumbling", Form: stage.Duration, Doc: "The length of windows that do not overlap. Set either tumbling or hopping."},
		{Name: "hopping", Form: stage.Duration, Doc: "The length of windows that overlap. Set either hopping or tumbling."},
		{Name: "every", Form: stage.Duration, Doc: "The time from the start of a hopping window to the start of the next."},
	}},
	{Name: "grace", Form: stage.Duration, Default: "0s", Doc: "How long after its end a window still accepts events. The clock is event time: the latest time in the partition so far."},
	{Name: "keep", Form: stage.Duration, Doc: "How long after its end the state of a window is kept, in event time. Its snapshot is deleted afterwards. If not set, states are kept forever."},
	{Name: "late", Form: stage.Word, Doc: "The topic for events that a window no longer accepts, as dead letters. If not set, such events are only counted."},
	{Name: "wait", Form: stage.Number, Min: 1, Max: 100_000, Doc: "How many records of the partition an event waits for its predecessor, by the field sequence. The default is 1,000."},
	{Name: "duplicates", Form: stage.Word, Values: []string{duplicatesAggregate, duplicatesPartition}, Default: duplicatesAggregate,
		Doc: "Where an event with the id of an earlier event is a duplicate, which is not folded again: within its aggregate, or within the whole partition. Use partition if an event may be sent again under another key, and no two events have the same id."},
	{Name: "on_gap", Form: stage.Word, Values: []string{onGapBlock, onGapApply}, Default: onGapBlock,
		Doc: "What happens if the predecessor does not arrive in time: block holds back the event and all later events of its aggregate until an operator releases it, apply continues without the missing events."},
	{Name: "publish", Form: stage.Group, Values: []string{publishEvery}, Doc: "When snapshots are published. every, the default, publishes with every batch that changed a state. To publish less often, set one of these.", Params: []stage.Param{
		{Name: "events", Form: stage.Number, Min: 1, Max: 1 << 40, Doc: "Publish after this many records of a partition."},
		{Name: "every", Form: stage.Duration, Doc: "Publish after this time."},
		{Name: "recovery", Form: stage.Duration, Doc: "Publish often enough to rebuild a partition whose store is lost from its snapshots within this time. The worker measures how long folding takes."},
	}},
	{Name: "max_state", Form: stage.Number, Min: 1, Max: 1 << 30, Doc: "The maximum size of a state in bytes. The default is 900,000. An event that would exceed it is not folded."},
}

func fileParams(kinds map[string]stage.Kind) []stage.Param {
	return []stage.Param{
		{Name: "name", Form: stage.Word, Required: true, Doc: "The name of the topology. It is part of the names of consumer groups."},
		{Name: "topics", Form: stage.Named, Required: true, Doc: "The topics, by name.", Params: topicParams},
		{Name: "tables", Form: stage.Named, Doc: "The tables, by name. Stages look up their rows by key.", Params: tableParams},
		{Name: "pipelines", Form: stage.Named, Doc: "The pipelines, by name. A pipeline reads a topic, runs stages over its events and writes the events that pass.", Params: pipelineParams(kinds)},
		{Name: "encryption", Form: stage.Group, Doc: "Encryption of the fields that schemas tag as personal. Each data subject has its own key.", Params: encryptionParams},
		{Name: "projections", Form: stage.Named, Doc: "The projections, by name. A projection folds the events of a topic into states of aggregates.", Params: projectionParams},
	}
}
