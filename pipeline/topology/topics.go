package topology

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology/align"
)

// The exclusive uses of a topic. A topic can also hold the snapshots of a projection.
const (
	asEvents      = "events"
	asDeadLetters = "dead letters"
	asReceipts    = "receipts"
	asKeys        = "encryption keys"
)

// receiptsRetention is the default of retention.ms of a topic of receipts: three
// days, in ms.
const receiptsRetention = "259200000"

// declareTopic adds a declared topic to the plan.
func (l *loader) declareTopic(item stage.Item) {
	t := &topic{Topic: &Topic{Name: item.Key.Text}, name: item.Key, unsure: l.faulty[align.At(item.Key.Line, item.Key.Col)]}
	l.checkTopicName(item.Key)
	l.topics[t.Name] = t
	l.plan.Topics = append(l.plan.Topics, t.Topic)
	if arg, ok := item.Args.Find("partitions"); ok {
		t.Partitions = int(arg.Number)
	}
	if arg, ok := item.Args.Find("replication"); ok {
		t.Replication = int(arg.Number)
	}
	if arg, ok := item.Args.Find("config"); ok {
		t.Config = map[string]string{}
		for _, e := range arg.Entries {
			t.Config[e.Key.Text] = e.Value.Text
		}
	}
	l.readTypes(t, item.Args)
	l.readEnvelope(t, item.Args)
	l.readRecords(t, item.Args)
	if arg, ok := item.Args.Find("headers"); ok {
		t.headers, t.Headers = arg.Key, Headers(arg.Value.Text)
		if t.Headers == CloudEvents && t.Bare != nil && t.Bare.ID.Text == "" {
			l.at(arg.Key, "set id: EXPRESSION on the topic", "a CloudEvent needs an id, but the events on %s have none", t.Name)
		}
	}
}

// readTypes reads the declared types of a topic.
func (l *loader) readTypes(t *topic, args stage.Args) {
	types, ok := args.Find("types")
	t.typed = ok
	if ok && len(types.Words) == 0 {
		l.at(types.Key, "remove types if a pipeline writes the topic; otherwise list the records on the topic", "types is empty")
	}
	seen := map[*codec.Schema]expr.Source{}
	for _, word := range types.Words {
		all, msg, hint := l.schemas.all(word.Text)
		if len(all) == 0 {
			t.unsure = true
			if msg != "" {
				l.at(word, hint, "%s", msg)
			}
		}
		for _, s := range all {
			if first, twice := seen[s]; twice {
				l.at(word, "remove one of them", duplicate, s.Name(), first.Line, first.Col)
				continue
			}
			seen[s] = word
			t.Types, t.words = append(t.Types, s), append(t.words, word)
		}
	}
}

// readEnvelope reads the envelope of a topic's records and checks the declared types
// against it.
func (l *loader) readEnvelope(t *topic, args stage.Args) {
	arg, given := args.Find("envelope")
	t.envelope = given
	bare := given && arg.Value.Text == envelopeNone
	part := func(name string) expr.Source {
		arg, ok := args.Find(name)
		if ok && !bare {
			l.at(arg.Key, "if the records have no envelope, add envelope: none", "%s is allowed only on a topic with envelope: none", name)
		}
		return arg.Value
	}
	id, key, when := part("id"), part("key"), part("time")
	if bare {
		t.Bare = &expr.Bare{ID: id, Key: key, Time: when}
	}
	for i, s := range t.Types {
		if !bare && t.typed {
			l.checkEnvelope(t.words[i], s)
		}
	}
}

// checkBare compiles the expressions that replace the envelope of a topic's events,
// once the types and the key format of the topic are known. It reports whether they are valid.
func (l *loader) checkBare(t *topic) bool {
	if t.checked || t.Bare == nil {
		return !t.bad
	}
	t.checked = true
	var faults []expr.Fault
	for _, s := range t.Types {
		bare, more := t.Bare.Compile(s, t.Name)
		faults = append(faults, more...)
		l.warns = append(l.warns, expressionWarnings{bare.Warnings(), typeNames(t.Types)})
	}
	l.grouped(faults, typeNames(t.Types))
	t.bad = len(faults) > 0
	return !t.bad
}

// checkEnvelope checks that an event type has the fields that all parts of Millrace
// rely on.
func (l *loader) checkEnvelope(at expr.Source, s *codec.Schema) (ok bool) {
	for _, want := range []struct {
		name, logical string
		kind          codec.Kind
	}{{"id", "", codec.String}, {"type", "", codec.String}, {"timestamp", "timestamp-m", codec.Long}} {
		f := s.Root().Field(want.name)
		if f != nil && f.Type.Kind == want.kind && strings.HasPrefix(f.Type.Logical, want.logical) {
			continue
		}
		l.at(at, "every event needs id and type (string) and timestamp (timestamp-micros); if these records have no such fields, set envelope: none on the topic",
			"%s has no valid field %s, which every event needs", s.Name(), want.name)
		return false
	}
	return true
}

// checkSimilarNames finds topics whose names collide in Kafka's metrics.
func (l *loader) checkSimilarNames() {
	seen := map[string]*topic{}
	for _, plain := range l.plan.Topics {
		t := l.topics[plain.Name]
		like := strings.ReplaceAll(t.Name, ".", "_")
		if other := seen[like]; other != nil {
			l.at(t.name, "rename one of them: Kafka treats dots and underscores in metric names as equal", "%s and %s differ only in dots and underscores", t.Name, other.Name)
		}
		seen[like] = t
	}
}

// find returns the topic that a parameter names. It is nil if the parameter is not
// given, or, with a fault, if the topic is not declared.
func (l *loader) find(args stage.Args, name string) (*topic, stage.Arg) {
	arg, ok := args.Find(name)
	if !ok {
		return nil, arg
	}
	t := l.topics[arg.Value.Text]
	if t == nil {
		hint := l.similarTopic(arg.Value.Text)
		if hint == "" {
			example := "{partitions: NUMBER}"
			switch name {
			case "from":
				example = "{partitions: NUMBER, types: [TYPE, ...]}"
			case "topic":
				example = "{partitions: NUMBER, types: [TYPE], config: {cleanup.policy: compact}}"
			}
			hint = fmt.Sprintf("add the line `%s: %s` under topics", arg.Value.Text, example)
		}
		l.at(arg.Value, hint, "the topic %s is not declared", arg.Value.Text)
	}
	return t, arg
}

// similarTopic returns a hint with the declared topic whose name was probably meant, or
// "". Only the parts after a common prefix of dotted words are compared. With the
// prefix, shop.orders would be close to shop.users, because the limit grows with the
// length of the name.
func (l *loader) similarTopic(name string) string {
	var similar []string
	for _, declared := range slices.Sorted(maps.Keys(l.topics)) {
		rest, other := name, declared
		for {
			word, after, ok := strings.Cut(rest, ".")
			if !ok || !strings.HasPrefix(other, word+".") {
				break
			}
			rest, other = after, other[len(word)+1:]
		}
		if expr.Suggest(rest, []string{other}) != "" {
			similar = append(similar, declared)
		}
	}
	return expr.Suggest(name, similar)
}

// claim gives a topic an exclusive use, such as asEvents. It returns false, with a
// fault, if the topic already has another use.
func (l *loader) claim(t *topic, at expr.Source, use string) bool {
	switch {
	case t.holds != "" && t.holds != use:
		l.at(at, "use a separate topic for each", "%s cannot hold %s: it already holds %s (%d:%d)", t.Name, use, t.holds, t.use.Line, t.use.Col)
		return false
	case t.holds == "":
		t.holds, t.use = use, at
	}
	return true
}

// ownConfig makes sure that a topic has a Config of its own that may be changed. An
// undeclared topic has none yet.
func (t *topic) ownConfig() {
	t.Config = maps.Clone(t.Config)
	if t.Config == nil {
		t.Config = map[string]string{}
	}
}

// checkReceipts checks a topic for receipts and sets its default retention.
func (l *loader) checkReceipts(t *topic, at expr.Source) {
	if t.typed {
		l.at(at, "remove types from the topic", "%s declares event types, so it cannot hold receipts", t.Name)
	}
	t.ownConfig()
	switch policy := t.Config["cleanup.policy"]; policy {
	case "", "delete":
		t.Config["cleanup.policy"] = "delete"
	default:
		l.at(at, "set cleanup.policy to delete, or remove it", "%s has cleanup.policy %s, which keeps the receipt of every event forever", t.Name, policy)
	}
	if t.Config["retention.ms"] == "" {
		t.Config["retention.ms"] = receiptsRetention
	}
}

// compact makes a topic compacted. It reports a fault if the topic has another
// cleanup policy; deleted names in messages what that policy would delete.
func (l *loader) compact(t *topic, at expr.Source, deleted string) {
	switch policy := t.Config["cleanup.policy"]; policy {
	case "", "compact":
		t.ownConfig()
		t.Config["cleanup.policy"] = "compact"
	default:
		l.at(at, "set cleanup.policy to compact, or remove it", "%s has cleanup.policy %s, which deletes %s", t.Name, policy, deleted)
	}
}
