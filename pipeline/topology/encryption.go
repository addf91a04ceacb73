package topology

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/within"
	"millrace/pipeline/stage"
)

// Encryption is the configuration for encrypting the fields that schemas tag as
// personal ([codec.PII]).
type Encryption struct {
	Keys *Topic // the compacted topic that holds the keys

	subjects map[string]string // path of the data subject's id, by full name of a record
}

// Subject returns the dotted path of the field that holds the data subject's id of a
// record's tagged fields. It is "" if none is configured.
func (e *Encryption) Subject(s *codec.Schema) string {
	if e == nil {
		return ""
	}
	return e.subjects[s.Name()]
}

// keyPartitions is the number of partitions of an undeclared key topic. It is fixed,
// because all keys of a subject are in one partition.
const keyPartitions = 12

// keyLag is the default of max.compaction.lag.ms of the key topic: how long a
// destroyed key stays in the topic before compaction removes it. One day, in ms.
const keyLag = "86400000"

// keyTombstones is the default of delete.retention.ms of the key topic: a hundred years, in
// ms. A null that somebody wrote over the mark of a forgotten subject is a mark, too, so
// brokers must not delete it.
const keyTombstones = "3155760000000"

var encryptionParams = []stage.Param{
	{Name: "key_topic", Form: stage.Word, Required: true, Doc: "The compacted topic for the keys. Each key is wrapped by a key-encryption key. The topic does not have to be declared under topics; it then has 12 partitions."},
	{Name: "subject", Form: stage.Texts, Required: true,
		Doc: "The data subject of the tagged fields: for each record with tagged fields (events and states), the path of the field that holds the subject's id."},
}

// declareEncryption adds the key topic to the plan. checkEncryption checks the rest
// at the end, when the whole plan is known.
func (l *loader) declareEncryption(args stage.Args) {
	arg, ok := args.Find("encryption")
	if !ok || len(arg.Items) == 0 {
		return
	}
	l.encryption = arg.Items[0].Args
	l.plan.Encryption = &Encryption{subjects: map[string]string{}}
	name, ok := l.encryption.Find("key_topic")
	if !ok {
		return
	}
	t := l.topics[name.Value.Text]
	if t == nil {
		if !l.checkTopicName(name.Value) {
			return
		}
		t = &topic{Topic: &Topic{Name: name.Value.Text, Partitions: keyPartitions}, name: name.Value}
		for _, have := range l.plan.Topics {
			t.Replication = max(t.Replication, have.Replication)
		}
		l.topics[t.Name] = t
		l.plan.Topics = append(l.plan.Topics, t.Topic)
	} else if t.typed {
		l.at(name.Value, "remove types from the topic", "%s declares event types, so it cannot hold encryption keys", t.Name)
	}
	if !l.claim(t, name.Value, asKeys) {
		return
	}
	l.compact(t, name.Value, "keys that are still needed")
	if t.Config["max.compaction.lag.ms"] == "" {
		t.Config["max.compaction.lag.ms"] = keyLag
	}
	if t.Config["delete.retention.ms"] == "" {
		t.Config["delete.retention.ms"] = keyTombstones
	}
	l.plan.Encryption.Keys = t.Topic
}

// readSubjects reads and checks the path of the subject's id in each record.
func (l *loader) readSubjects() {
	arg, _ := l.encryption.Find("subject")
	given := map[string]expr.Source{}
	for _, e := range arg.Entries {
		s, msg, hint := l.schemas.find(e.Key.Text)
		if s == nil {
			if msg != "" {
				l.at(e.Key, hint, "%s", msg)
			}
			continue
		}
		if first, twice := given[s.Name()]; twice {
			l.at(e.Key, "remove one of them", duplicate, s.Name(), first.Line, first.Col)
			continue
		}
		given[s.Name()] = e.Key
		l.plan.Encryption.subjects[s.Name()] = e.Value.Text // also if it is faulty, so it is not reported as missing
		if tagged, _ := s.Tagged(); len(tagged) == 0 {
			l.at(e.Key, fmt.Sprintf("tag a field in its schema with %q: true, or remove %s here", codec.PII, e.Key.Text), "%s has no tagged field", s.Name())
			continue
		}
		if msg, hint := badSubject(s, e.Value.Text); msg != "" {
			l.at(e.Value, hint, "%s", msg)
		}
	}
	if len(arg.Entries) == 0 && arg.Name != "" {
		l.at(arg.Key, "write subject: {RECORD: PATH}", "subject is empty")
	}
}

// badSubject checks the path of a subject's id in a record. The message is empty if
// the path is valid.
func badSubject(s *codec.Schema, path string) (msg, hint string) {
	field, fault := within.FieldAt(s, strings.Split(path, "."))
	if fault != nil {
		return fault.Msg, fault.Hint
	}
	n := field.Node
	if n.Tag != "" {
		return fmt.Sprintf("%s of %s is encrypted, so it cannot hold the subject's id", path, s.Name()), "name a field that is not tagged"
	}
	n = n.NotNull()
	if n.Kind != codec.String && n.Kind != codec.Int && n.Kind != codec.Long {
		return fmt.Sprintf("%s of %s is %s, but a subject's id must be a string, an int or a long", path, s.Name(), n), ""
	}
	return "", ""
}

// checkTagged checks that encryption is configured for the tagged fields of a record
// that is in use. Each record is checked once.
func (l *loader) checkTagged(at expr.Source, s *codec.Schema) {
	tagged, _ := s.Tagged()
	if len(tagged) == 0 || l.seenTags[s.Name()] {
		return
	}
	if l.seenTags == nil {
		l.seenTags = map[string]bool{}
	}
	l.seenTags[s.Name()] = true
	names := make([]string, len(tagged))
	for i := range tagged {
		names[i] = strings.Join(tagged[i], ".")
	}
	if l.plan.Encryption == nil {
		l.at(at, fmt.Sprintf("add encryption: {key_topic: NAME, subject: {%s: PATH}}", short(s)), "%s has fields that are tagged as personal (%s), but the topology configures no encryption", s.Name(), listed(names))
		return
	}
	if arg, ok := l.encryption.Find("subject"); ok && l.plan.Encryption.Subject(s) == "" {
		l.at(arg.Key, fmt.Sprintf("add %s: PATH", short(s)), "%s has tagged fields (%s), but no path under subject", s.Name(), listed(names))
	}
}

// checkEncryption checks the use of tagged fields in the finished plan.
func (l *loader) checkEncryption() {
	for _, plain := range l.plan.Topics {
		t := l.topics[plain.Name]
		for i, word := range t.words {
			l.checkTagged(word, t.Types[i])
		}
	}
	for _, p := range l.projections {
		p.projection.Subjects = l.keyedBySubject(p)
		arg, ok := p.args.Find("state")
		if s, _, _ := l.schemas.find(arg.Value.Text); ok && s != nil {
			l.checkTagged(arg.Value, s)
			if path := l.plan.Encryption.Subject(s); path != "" && p.projection.Fold != nil {
				l.checkSubject(p, s, path)
			}
		}
	}
	if l.plan.Encryption != nil && len(l.seenTags) == 0 && len(l.plan.Encryption.subjects) > 0 && len(l.faults) == 0 {
		arg, _ := l.encryption.Find("subject")
		l.at(arg.Key, "remove encryption, or use a record with tagged fields", "no topic and no state uses a record with tagged fields")
	}
}

// keyedBySubject reports whether each aggregate of a projection is the data subject
// of the encrypted fields in its events.
func (l *loader) keyedBySubject(p *declared) (is bool) {
	key, _ := p.args.Find("key")
	on, _ := p.args.Find("on")
	for _, item := range on.Items {
		of := ""
		if from := p.projection.From; from != nil {
			of = l.subjectOf(item.Key.Text, from.Types)
		}
		if of != "" && of != key.Value.Text {
			return false
		}
		is = is || of != ""
	}
	return is
}

// subjectOf returns the path of the subject's id in the type that a word names, ""
// if it has none.
func (l *loader) subjectOf(word string, types []*codec.Schema) string {
	for _, t := range types {
		if word == short(t) || word == t.Name() {
			return l.plan.Encryption.Subject(t)
		}
	}
	return ""
}

// checkSubject checks that a state has the same subject as the events whose tagged
// fields it copies. With another subject, and so another key, the fields could not be
// decrypted.
func (l *loader) checkSubject(p *declared, state *codec.Schema, path string) {
	tagged, _ := state.Tagged()
	key, _ := p.args.Find("key")
	stateArg, _ := p.args.Find("state")
	on, _ := p.args.Find("on")
	neverSet := true
	for _, item := range on.Items {
		of := cmp.Or(l.subjectOf(item.Key.Text, p.projection.From.Types), key.Value.Text)
		set, _ := item.Args.Find("set")
		copies, sets := false, false
		for _, e := range set.Entries {
			copies = copies || slices.ContainsFunc(tagged, func(p []string) bool { return strings.Join(p, ".") == e.Key.Text })
			if e.Key.Text != path {
				continue
			}
			sets, neverSet = true, false
			if e.Value.Text != of {
				l.at(e.Value, "set "+path+": "+of, "%s holds the subject's id of %s, so it must be the subject's id of %s", path, state.Name(), item.Key.Text)
			}
		}
		if copies && !sets && of != key.Value.Text {
			l.at(item.Key, fmt.Sprintf("write set: {%s: %s, ...}", path, of), "%s sets encrypted fields of %s, but not %s, which holds the subject's id", item.Key.Text, state.Name(), path)
		}
	}
	if neverSet {
		l.at(stateArg.Value, "set "+path+" in an event type under on", "no event sets %s of %s, which holds the subject's id for its encrypted fields", path, state.Name())
	}
}

// keepsSubject checks that a stage does not change the subject's id of encrypted
// fields.
func (b *builder) keepsSubject(s Stage, at expr.Source) {
	for i, schema := range b.schemas {
		path := b.plan.Encryption.Subject(schema)
		if path == "" || !s.On[i] {
			continue
		}
		for _, w := range stage.Sets(s.Built, i) {
			if strings.Join(w, ".") == path {
				b.at(at, "set another field", "stage %s sets %s of %s, which holds the subject's id: the encrypted fields could not be decrypted any more", s.Name, path, b.names[i])
				b.failed = true
			}
		}
	}
}
