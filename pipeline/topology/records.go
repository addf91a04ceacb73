package topology

import (
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/metadata"
	"millrace/pipeline/identity"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/stage"
)

// This file says what the records of a topic are apart from their values: the format of
// their keys, how they got their partitions, what a record without a value means, what
// identifies an event, and where the registry has the schemas. A topic that a pipeline writes inherits what it does not
// declare.

// Tombstone says what a record without a value (a tombstone) means on a topic.
type Tombstone string

// The values of Tombstone. Tables delete the row whatever the value is.
const (
	// TombstoneDelete: pipelines pass the tombstone, projections delete the aggregate.
	TombstoneDelete Tombstone = "delete"
	// TombstonePass: pipelines pass the tombstone, projections ignore and count it.
	TombstonePass Tombstone = "pass"
	// TombstoneIgnore: pipelines drop and count it, projections ignore and count it.
	TombstoneIgnore Tombstone = "ignore"
	// TombstoneDeadLetter: pipelines write a dead letter, projections reject it.
	TombstoneDeadLetter Tombstone = "dead_letter"
)

// ceSource is the header with the source of a CloudEvent.
const ceSource = "ce_source"

// Passes reports whether pipelines write a tombstone for a tombstone.
func (t Tombstone) Passes() bool { return t == TombstoneDelete || t == TombstonePass }

var recordParams = []stage.Param{
	{Name: "key_format", Form: stage.Word,
		Values: []string{string(keyformat.Text), string(keyformat.Avro), string(keyformat.Long), string(keyformat.Int), string(keyformat.UUID), string(keyformat.Bytes)},
		Doc: "The format of the records' keys: text (UTF-8), avro (with a Confluent frame), long or int (8 or 4 bytes, big-endian), uuid (16 bytes) or bytes. " +
			"The default is text; a topic that a pipeline writes inherits the format of the pipeline's input."},
	{Name: "key_schema", Form: stage.Word, Doc: "The schema in the schemas directory that describes the keys. Only with key_format: avro."},
	{Name: "partitioner", Form: stage.Word, Values: []string{string(pipeline.Murmur2), string(pipeline.CRC32), string(pipeline.OtherPartitioner)},
		Doc: "What assigns the records to partitions by their keys: murmur2 is Kafka's Java client, crc32 is the default of librdkafka, other is anything else, and then partitions are not checked. Millrace writes records to the same partitions, with murmur2 if it is other. The default is murmur2."},
	{Name: "tombstone", Form: stage.Word, Values: []string{string(TombstoneDelete), string(TombstonePass), string(TombstoneIgnore), string(TombstoneDeadLetter)},
		Doc: "What a record without a value means. delete: pipelines write it under the record's key, and projections delete the aggregate. pass: pipelines write it, and projections ignore it. " +
			"ignore: it is counted and dropped. dead_letter: pipelines write a dead letter, and projections reject it. " +
			"The default is delete on a compacted topic, the value of the pipeline's input on a topic that a pipeline writes, otherwise dead_letter."},
	{Name: "identity", Form: stage.Words,
		Doc: "What identifies an event: id, paths of string fields, keys of maps of strings (metadata.source), or headers (headers.ce_source). " +
			"The default is [id]; with headers: cloudevents it is the source and the id of the CloudEvent."},
	{Name: "subjects", Form: stage.Word, Values: []string{string(codec.TopicRecordName), string(codec.TopicName), string(codec.RecordName)}, Default: string(codec.TopicRecordName),
		Doc: "The subjects of the schemas in the registry: topic_record is TOPIC-RECORD with the full name of the record, topic is TOPIC-value and allows one event type to be written, record is the full name of the record. " +
			"The subject of Avro keys is TOPIC-key in each case."},
}

// readRecords reads what a topic declares about its records.
func (l *loader) readRecords(t *topic, args stage.Args) {
	arg, given := args.Find("key_format")
	t.keyFormat = given
	subjects, _ := args.Find("subjects")
	t.Subjects = codec.SubjectNames(subjects.Value.Text)
	t.KeyFormat.Kind = keyformat.Kind(arg.Value.Text)
	l.readKeySchema(t, args)
	t.Partitioner = pipeline.Murmur2
	if arg, ok := args.Find("partitioner"); ok {
		t.Partitioner = pipeline.Partitioner(arg.Value.Text)
	}
	if arg, ok := args.Find("tombstone"); ok {
		t.tombstone, t.Tombstone = arg.Key, Tombstone(arg.Value.Text)
	}
	if arg, ok := args.Find("identity"); ok {
		t.identity = arg.Words
		if len(arg.Words) == 0 {
			l.at(arg.Key, "remove identity to identify events by id, or list the parts", "identity is empty")
		}
		for _, word := range arg.Words {
			t.Identity = append(t.Identity, identityPart(word.Text))
		}
	}
}

// readKeySchema reads the schema of Avro keys.
func (l *loader) readKeySchema(t *topic, args stage.Args) {
	arg, ok := args.Find("key_schema")
	avro := t.KeyFormat.Kind == keyformat.Avro
	switch {
	case ok && !avro:
		l.at(arg.Key, "add key_format: avro, or remove key_schema", "key_schema is allowed only with key_format: avro")
	case ok:
		s, msg, hint := l.schemas.find(arg.Value.Text)
		if s == nil && msg != "" {
			l.at(arg.Value, hint, "%s", msg)
		}
		t.KeyFormat.Schema = s
	case avro:
		given, _ := args.Find("key_format")
		l.at(given.Key, "add key_schema: NAME, the record in the schemas directory that describes the keys", "%s has Avro keys without a schema", t.Name)
	}
}

// identityPart returns the part that a word of identity names.
func identityPart(word string) identity.Part {
	if name, ok := strings.CutPrefix(word, "headers."); ok {
		return identity.Part{Header: name}
	}
	if word == "id" {
		return identity.Part{ID: true}
	}
	return identity.Part{Path: strings.Split(word, ".")}
}

// checkIdentity checks the identity of a topic, which is declared there or inherited,
// against its types. They are known by now.
func (l *loader) checkIdentity(t *topic) {
	for i, part := range t.Identity {
		path, at := part.Path, t.name
		if t.identityFrom != nil && t.identityFrom.badIdentity {
			return // reported there
		}
		if t.identity != nil {
			at = t.identity[i]
		}
		switch {
		case part.Header != "":
			continue
		case part.ID && t.Bare != nil && t.Bare.ID.Text != "":
			continue
		case part.ID:
			path = []string{"id"}
		}
		for _, s := range t.Types {
			if !identity.Has(s, path) {
				l.at(at, "set identity on the topic: string fields, keys of maps of strings such as metadata.source, or headers such as headers.ce_source",
					"%s has no text at %s, which is part of the identity of the events on %s", s.Name(), strings.Join(path, "."), t.Name)
				t.badIdentity = true
				break
			}
		}
	}
}

// inheritRecords gives topics what they do not declare about their records: by default,
// or from the input of a pipeline that writes them. It runs before pipelines are built,
// and after cycles were found.
func (l *loader) inheritRecords() {
	seen := map[*declared]bool{}
	var visit func(p *declared)
	visit = func(p *declared) {
		if seen[p] || p.pipeline.From == nil {
			return
		}
		seen[p] = true
		from := l.topics[p.pipeline.From.Name]
		for _, q := range l.pipelines {
			if slices.ContainsFunc(q.targets, func(t target) bool { return t.Topic == from.Topic }) {
				visit(q)
			}
		}
		l.settleRecords(from)
		p.pipeline.Tombstone = l.tombstones(p, from)
		for _, t := range p.targets {
			l.inheritHeaders(p, l.topics[t.Name], t.at)
			l.inheritKeyFormat(p, from, l.topics[t.Name], t.at)
			l.inheritTombstone(p, l.topics[t.Name])
			l.inheritIdentity(p, from, l.topics[t.Name])
		}
	}
	for _, p := range l.pipelines {
		visit(p)
	}
	for _, t := range l.topics {
		l.settleRecords(t)
	}
}

// settleRecords sets the defaults of a topic. No pipeline that is visited later writes
// it.
func (l *loader) settleRecords(t *topic) {
	if t.Partitioner == "" {
		t.Partitioner = pipeline.Murmur2
	}
	if t.Bare != nil {
		t.Bare.RecordKey = metadata.KeyOf(t.KeyFormat)
	}
	if t.Tombstone == "" {
		t.Tombstone = TombstoneDeadLetter
		if t.compacted() {
			t.Tombstone = TombstoneDelete
		}
	}
}

// settleIdentity sets the default identity of a topic whose types and envelope are known,
// and checks a declared one.
func (l *loader) settleIdentity(t *topic) {
	switch {
	case t.settled:
		return
	case t.Identity != nil:
		l.checkIdentity(t)
	case t.Bare != nil && t.Bare.ID.Text == "":
	case t.Headers == CloudEvents:
		t.Identity = identity.Identity{{Header: ceSource, Default: l.plan.Name}, {ID: true}}
	default:
		t.Identity = identity.Identity{{ID: true}}
	}
	t.settled = true
}

func (t *topic) compacted() bool { return strings.Contains(t.Config["cleanup.policy"], "compact") }

// inheritKeyFormat gives a topic the format of the keys that a pipeline writes. Stages
// that set keys write text, which converts to the declared format of the topic.
func (l *loader) inheritKeyFormat(p *declared, from, t *topic, at expr.Source) {
	some, all := l.setsKeys(p)
	writes := from.KeyFormat
	if all {
		writes = keyformat.Format{}
	}
	switch {
	case some && (t.keyFormat && t.KeyFormat.Kind == keyformat.Avro || !t.keyFormat && writes.Kind == keyformat.Avro):
		l.at(at, "set key_format: text on the topic that it writes, and set a key for every type", "%s sets keys, which cannot become Avro keys of %s", p.what, t.Name)
	case t.keyFormat && !all && !t.KeyFormat.Equal(from.KeyFormat):
		l.at(at, "remove key_format from "+t.Name+", or set the key with the stage rekey: {key: EXPRESSION}",
			"%s declares key_format %s, but %s writes the keys of %s unchanged, which are %s", t.Name, t.KeyFormat, p.what, from.Name, from.KeyFormat)
	case t.keyFormat:
	case t.keysFrom == nil:
		t.keysFrom, t.KeyFormat = p, writes
	case !t.KeyFormat.Equal(writes):
		l.at(at, "set key_format on "+t.Name+", and set the keys with the stage rekey", "%s and %s both write %s, but with keys of different formats: %s and %s",
			t.keysFrom.what, p.what, t.Name, t.KeyFormat, writes)
	}
}

// setsKeys reports whether stages of a pipeline, or the key of its input, set the key
// of some or of all events.
func (l *loader) setsKeys(p *declared) (some, all bool) {
	if from := p.pipeline.From; from.Bare != nil && from.Bare.Key.Text != "" {
		return true, true
	}
	for kind, args := range stagesOf(p) {
		if kind == "rekey" {
			_, limited := args.Find("on")
			some, all = true, all || !limited
		}
	}
	return some, all
}

// stagesOf calls yield with the kind and the parameters of each stage of a pipeline.
func stagesOf(p *declared) func(yield func(kind string, args stage.Args) bool) {
	return func(yield func(string, stage.Args) bool) {
		stages, _ := p.args.Find("stages")
		for _, item := range stages.Items {
			if len(item.Args) > 0 && !yield(item.Args[0].Name, item.Args[0].Items[0].Args) {
				return
			}
		}
	}
}

// tombstones returns what a pipeline does with tombstones. It cannot pass them if the
// key or the topic of its output follows from the value of an event.
func (l *loader) tombstones(p *declared, from *topic) Tombstone {
	if !from.Tombstone.Passes() {
		return from.Tombstone
	}
	by := l.needsValue(p)
	if by == "" {
		return from.Tombstone
	}
	at, _ := p.args.Find("from")
	msg := "%s cannot pass the tombstones of %s: %s needs the value, and a tombstone has none"
	if from.tombstone.Line > 0 {
		l.at(at.Value, "set tombstone: ignore or dead_letter on "+from.Name+", or key and route the events without their values", msg, p.what, from.Name, by)
	} else {
		p.passesNone = by
	}
	return TombstoneDeadLetter
}

// needsValue names what needs the value of an event to choose the key or the topic of the
// output; "" if nothing does.
func (l *loader) needsValue(p *declared) string {
	if from := p.pipeline.From; from.Bare != nil && from.Bare.Key.Text != "" {
		return "the expression key of " + from.Name
	}
	for kind, args := range stagesOf(p) {
		if l.o.Stages[kind].Moves {
			name := kind
			if given, ok := args.Find("name"); ok {
				name = given.Value.Text
			}
			return "stage " + name
		}
	}
	return ""
}

// inheritTombstone gives a topic the meaning that tombstones have for a pipeline that
// passes them to it.
func (l *loader) inheritTombstone(p *declared, t *topic) {
	if t.tombstone.Line > 0 || t.compacted() || t.Tombstone == TombstoneDelete {
		return
	}
	if p.pipeline.Tombstone.Passes() {
		t.Tombstone = p.pipeline.Tombstone
	}
	for kind, args := range stagesOf(p) {
		if _, deletes := args.Find("delete"); deletes && kind == "select" {
			t.Tombstone = TombstoneDelete
		}
	}
}

// inheritIdentity gives a topic the identity of a pipeline's input, unless that is the
// default. The parts of a split event differ only in their ids, so their identity is
// the default.
func (l *loader) inheritIdentity(p *declared, from, t *topic) {
	if from.Identity == nil || t.Identity != nil {
		return
	}
	for kind := range stagesOf(p) {
		if kind == "split" || kind == "select" {
			return
		}
	}
	if t.Headers == NoHeaders && slices.ContainsFunc(from.Identity, func(part identity.Part) bool { return strings.HasPrefix(part.Header, "ce_") }) {
		return
	}
	t.Identity, t.identityFrom = from.Identity, from
}
