package keyringtest

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/harness"
	"millrace/pipeline/keyring"
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

// PersonTopology encrypts what personSchema tags.
func PersonTopology(t testing.TB, partitions int) *topology.Topology {
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

func TestKEKs(t testing.TB, ids ...string) *seal.KEKs {
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

// TestRing returns a ring in which each of the subjects has a key.
func TestRing(t testing.TB, k *seal.KEKs, subjects ...string) *seal.Ring {
	t.Helper()
	r := seal.NewRing(k)
	for _, s := range subjects {
		record, err := k.NewKey(s, harness.Now)
		if err == nil {
			err = r.Take(record)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// PersonBody returns the Avro body of a person's event as JSON has it.
func PersonBody(t testing.TB, s *codec.Schema, data string) []byte {
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

// SealBody encrypts a body with the key of a subject.
func SealBody(t testing.TB, f *keyring.Fields, ring *seal.Ring, body []byte) []byte {
	t.Helper()
	var v pipeline.View
	if err := f.Layout.Walk(body, &v); err != nil {
		t.Fatal(err)
	}
	subject, err := f.Subject(&v)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ring.Current(subject)
	if err != nil {
		t.Fatal(err)
	}
	f.Seal(&v, subject, key)
	return v.Append(nil)
}

func ShownJSON(t *testing.T, f *keyring.Fields, ring *seal.Ring, body []byte) (string, map[string]string) {
	t.Helper()
	shown, err := f.Open(body, ring)
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
