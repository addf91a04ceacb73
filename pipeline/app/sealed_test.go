package app

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"strings"
	"testing"
	"testing/fstest"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/seal"
	"millrace/pipeline/topology"
)

const personSchema = `{"type":"record","name":"Person","fields":[
	{"name":"id","type":"string"},
	{"name":"type","type":"string","default":"Person"},
	{"name":"timestamp","type":{"type":"long","logicalType":"timestamp-micros"}},
	{"name":"data","type":{"type":"record","name":"PersonData","fields":[
		{"name":"id","type":["null","string"]},
		{"name":"email","type":"string","millrace.pii":true},
		{"name":"mail","type":"string","millrace.pii":"email"},
		{"name":"photo","type":["null","bytes"],"default":null,"millrace.pii":true},
		{"name":"city","type":"string","default":"Ulm"}]}}]}`

// personTopology encrypts what personSchema tags.
func personTopology(t testing.TB, partitions int) *topology.Topology {
	t.Helper()
	plan, err := topology.Load(topology.Source{Name: "topology.yaml", Text: fmt.Appendf(nil, `name: people
topics:
  people.events: {partitions: %d, types: [Person]}
encryption: {key_topic: people.keys, subject: {Person: data.id}}
`, partitions)}, topology.Options{Schemas: fstest.MapFS{"Person.avsc": &fstest.MapFile{Data: []byte(personSchema)}}})
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

func testKEKs(t testing.TB, ids ...string) *seal.KEKs {
	t.Helper()
	text := ""
	for _, id := range ids {
		text += id + " " + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte(id), 32)[:32]) + "\n"
	}
	k, err := seal.ParseKEKs(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// testRing returns a ring in which each of the subjects has a key.
func testRing(t testing.TB, k *seal.KEKs, subjects ...string) *seal.Ring {
	t.Helper()
	r := seal.NewRing(k)
	for _, s := range subjects {
		record, err := k.NewKey(s, testNow)
		if err == nil {
			err = r.Take(record)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// personBody returns the Avro body of a person's event as JSON has it.
func personBody(t testing.TB, s *codec.Schema, data string) []byte {
	t.Helper()
	var j codec.JSON
	if err := j.Parse([]byte(`{"id":"e-1","timestamp":1,"data":` + data + `}`)); err != nil {
		t.Fatal(err)
	}
	body, err := j.AppendAvro(nil, s)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// sealBody encrypts a body with the key of a subject.
func sealBody(t testing.TB, f *sealedFields, ring *seal.Ring, body []byte) []byte {
	t.Helper()
	var v pipeline.View
	if err := f.layout.Walk(body, &v); err != nil {
		t.Fatal(err)
	}
	subject, err := f.whose(&v)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ring.Current(subject)
	if err != nil {
		t.Fatal(err)
	}
	f.seal(&v, subject, key)
	return v.Append(nil)
}

func shownJSON(t *testing.T, f *sealedFields, ring *seal.Ring, body []byte) (string, map[string]string) {
	t.Helper()
	shown, err := f.open(body, ring)
	if err != nil {
		t.Fatal(err)
	}
	text, err := codec.AppendJSON(nil, shown.Type, shown.Body)
	if err != nil {
		t.Fatal(err)
	}
	_, data, _ := strings.Cut(string(text), `"data":`)
	return strings.TrimSuffix(data, "}"), shown.Hidden
}

func TestTaggedFieldsAreSealedAndShown(t *testing.T) {
	plan := personTopology(t, 1)
	s := plan.Topics[0].Types[0]
	f, err := newSealedFields(plan.Encryption, s)
	if err != nil {
		t.Fatal(err)
	}
	ring := testRing(t, testKEKs(t, "a"), "u-1", "u-2")
	for _, data := range []string{
		`{"id":"u-1","email":"anna@example.com","mail":"","photo":"/////w==","city":"Bonn"}`,
		`{"id":"u-1","email":"sealed:","mail":"ünï","photo":null,"city":"Bonn"}`,
	} {
		body := personBody(t, s, data)
		sealed := sealBody(t, f, ring, body)
		if bytes.Contains(sealed, []byte("anna")) || bytes.Contains(sealed, []byte("\xff\xff\xff\xff")) || !bytes.Contains(sealed, []byte("Bonn")) {
			t.Errorf("%q", sealed)
		}
		if _, err := codec.AppendJSON(nil, s.Root(), sealed); err != nil {
			t.Errorf("it is no %s any more: %v", s.Name(), err)
		}
		if got, hidden := shownJSON(t, f, ring, sealed); got != data || len(hidden) > 0 {
			t.Errorf("it is shown as %s, %v\nand was   %s", got, hidden, data)
		}
	}
	// What was written before it was tagged, is shown as it stands.
	data := `{"id":null,"email":"anna@example.com","mail":"","photo":null,"city":"Ulm"}`
	if got, hidden := shownJSON(t, f, ring, personBody(t, s, data)); got != data || len(hidden) > 0 {
		t.Errorf("plaintext is shown as %s, %v", got, hidden)
	}
}

func TestWhatCannotBeReadIsNullAndSaysWhy(t *testing.T) {
	plan := personTopology(t, 1)
	s := plan.Topics[0].Types[0]
	f, err := newSealedFields(plan.Encryption, s)
	if err != nil {
		t.Fatal(err)
	}
	k := testKEKs(t, "a")
	ring := testRing(t, k, "u-1", "u-2")
	text := func(subject, field, plain string) string {
		key, err := ring.Current(subject)
		if err != nil {
			t.Fatal(err)
		}
		return string(key.AppendText(nil, []byte(plain), seal.Place{Subject: subject, Field: field}))
	}
	bits := func(subject, field string) string {
		key, err := ring.Current(subject)
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(key.AppendBytes(nil, []byte("x"), seal.Place{Subject: subject, Field: field}))
	}
	good := text("u-1", "email", "anna@example.com")
	mark, err := seal.Erased("u-1", testNow)
	if err != nil {
		t.Fatal(err)
	}
	record, err := k.NewKey("u-1", testNow)
	if err != nil {
		t.Fatal(err)
	}
	rings := map[string]*seal.Ring{"": ring, "erased": testRing(t, k, "u-1"), "another": seal.NewRing(k), "locked": seal.NewRing(nil), "empty": seal.NewRing(k)}
	for _, err := range []error{rings["erased"].Take(mark), rings["another"].Take(record), rings["locked"].Take(record)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	// The locked ring has the very key, and nothing to unwrap it with.
	unlocked := seal.NewRing(k)
	if err := unlocked.Take(record); err != nil {
		t.Fatal(err)
	}
	key, err := unlocked.Current("u-1")
	if err != nil {
		t.Fatal(err)
	}
	locked := string(key.AppendText(nil, []byte("anna"), seal.Place{Subject: "u-1", Field: "email"}))

	hidden := func(pairs ...string) map[string]string {
		out := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			out[pairs[i]] = pairs[i+1]
		}
		return out
	}
	for name, c := range map[string]struct {
		ring, id, email, mail, photo string
		want                         map[string]string
	}{
		"well":                     {"", `"u-1"`, good, good, bits("u-1", "photo"), hidden()},
		"moved to another subject": {"", `"u-2"`, good, "", bits("u-1", "photo"), hidden("data.email", "no_key", "data.photo", "no_key")},
		"of another subject's key": {"", `"u-2"`, text("u-2", "email", "x"), "", bits("u-2", "email"), hidden("data.photo", "tampered")},
		"moved to another field":   {"", `"u-1"`, text("u-1", "photo", "x"), good, bits("u-1", "email"), hidden("data.email", "tampered", "data.photo", "tampered")},
		"changed":                  {"", `"u-1"`, good[:len(good)-2] + "AA", "sealed:", bits("u-1", "photo"), hidden("data.email", "tampered", "data.mail", "tampered")},
		"without a subject":        {"", `null`, good, "", bits("u-1", "photo"), hidden("data.email", "tampered", "data.photo", "tampered")},
		"not UTF-8":                {"", `"u-1"`, text("u-1", "email", "\xff"), "", bits("u-1", "photo"), hidden("data.email", "tampered")},
		"forgotten":                {"erased", `"u-1"`, good, "", bits("u-1", "photo"), hidden("data.email", "erased", "data.photo", "erased")},
		"with another key":         {"another", `"u-1"`, good, "", bits("u-1", "photo"), hidden("data.email", "no_key", "data.photo", "no_key")},
		"without the key":          {"empty", `"u-1"`, good, "", bits("u-1", "photo"), hidden("data.email", "no_key", "data.photo", "no_key")},
		"without the kek":          {"locked", `"u-1"`, locked, "", bits("u-1", "photo"), hidden("data.email", "no_kek", "data.photo", "no_key")},
	} {
		body := personBody(t, s, fmt.Sprintf(`{"id":%s,"email":%q,"mail":%q,"photo":%q,"city":"Ulm"}`, c.id, c.email, c.mail, c.photo))
		got, why := shownJSON(t, f, rings[c.ring], body)
		if !maps.Equal(why, c.want) {
			t.Errorf("%s: hidden are %v, want %v", name, why, c.want)
		}
		for path := range c.want {
			if want := fmt.Sprintf(`%q:null`, strings.TrimPrefix(path, "data.")); !strings.Contains(got, want) {
				t.Errorf("%s: %s is not null: %s", name, path, got)
			}
		}
		if strings.Contains(got, "sealed:") {
			t.Errorf("%s: a ciphertext is shown: %s", name, got)
		}
	}
}

// BenchmarkShow is what it costs to show an event with two encrypted fields.
func BenchmarkShow(b *testing.B) {
	plan := personTopology(b, 1)
	s := plan.Topics[0].Types[0]
	f, err := newSealedFields(plan.Encryption, s)
	if err != nil {
		b.Fatal(err)
	}
	ring := testRing(b, testKEKs(b, "a"), "u-1")
	body := sealBody(b, f, ring, personBody(b, s, `{"id":"u-1","email":"anna@example.com","mail":"x"}`))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.open(body, ring); err != nil {
			b.Fatal(err)
		}
	}
}
