package producer

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/harness"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/topology"
)

// longKeys returns an encoder of the shop's events whose keys are longs.
func longKeys(t *testing.T) *event.Encoder {
	t.Helper()
	topic := eventtest.ShopTopic(t)
	topic.KeyFormat.Kind = keyformat.Long
	e, err := eventtest.Encoder(t, topic, "data.id")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestSentRecordsHaveTheKeyFormatOfTheTopic(t *testing.T) {
	w := &fakeWriter{write: acceptAll}
	s := newSending(t, w)
	s.encoder = longKeys(t)
	s.metrics = newProducerMetrics(prometheus.NewRegistry(), s.encoder.Types())
	out := s.text(t.Context(), `{"type":"OrderPaid","data":{"id":"258"}}`+"\n"+`{"type":"OrderPaid","data":{"id":"o-1"}}`+"\n"+`{"type":"OrderPaid","data":{"id":"-1"}}`+"\n")
	if want := []string{"\x00\x00\x00\x00\x00\x00\x01\x02", "\xff\xff\xff\xff\xff\xff\xff\xff"}; out.err != nil || out.rejected != 1 || !slices.Equal(w.keys, want) {
		t.Errorf("%+v, %q, want %q", out, w.keys, want)
	}
	const fault = `stdin:2: data.id: "o-1" is not a key of shop.events, which has key_format long: send a whole number of 64 bits`
	if got := s.console.String(); !strings.Contains(got, fault+"\n") {
		t.Errorf("reported %swant %s", got, fault)
	}
}

func TestAcceptedEventsHaveTheKeyFormatOfTheTopic(t *testing.T) {
	w := &intakeWriter{}
	in := newIntakeWith(longKeys(t), w)
	cloud := strings.ReplaceAll(cloudPaid, "o-1", "258")
	for _, got := range []int{
		post(t, in, strings.ReplaceAll(paidEvent, "o-1", "258"), asJSON).Code,
		post(t, in, cloud, asCloud).Code,
		post(t, in, `[`+cloud+`]`, asClouds).Code,
		post(t, in, `{"id":"258"}`, binaryHeaders...).Code,
	} {
		if got != http.StatusOK {
			t.Errorf("status %d", got)
		}
	}
	if len(w.records) != 4 {
		t.Fatalf("%d records", len(w.records))
	}
	for _, r := range w.records {
		if string(r.Key) != "\x00\x00\x00\x00\x00\x00\x01\x02" {
			t.Errorf("the key is %x", r.Key)
		}
	}
	for _, bad := range [][]string{{paidEvent, asJSON}, {cloudPaid, asCloud}} {
		if got := post(t, in, bad[0], bad[1:]...); got.Code != http.StatusBadRequest || !strings.Contains(got.Body.String(), `"field":"data.id"`) && !strings.Contains(got.Body.String(), `"field": "data.id"`) ||
			!strings.Contains(got.Body.String(), "which has key_format long: send a whole number of 64 bits") {
			t.Errorf("%d %s", got.Code, got.Body)
		}
	}
	if len(w.records) != 4 {
		t.Errorf("%d records after bad events", len(w.records))
	}
}

// The subject of a CloudEvent is the text form of the key.
func TestTheSubjectOfACloudEventIsTheTextOfTheKey(t *testing.T) {
	topic := eventtest.ShopTopic(t)
	topic.KeyFormat.Kind, topic.Headers, topic.Source = keyformat.Long, topology.CloudEvents, "shop"
	e, err := eventtest.Encoder(t, topic, "data.id")
	if err != nil {
		t.Fatal(err)
	}
	var r pipeline.Record
	if _, _, err := e.Encode([]byte(`{"type":"OrderPaid","data":{"id":"258"}}`), &r, nil); err != nil {
		t.Fatal(err)
	}
	if got, _ := r.Header("ce_subject"); string(got) != "258" {
		t.Errorf("the subject is %q in\n%s", got, eventtest.HeaderText(r.Headers))
	}
}

// A listed letter has the text form of its key, by the format of the topic that it came
// from, and is always text.
func TestListedLettersHaveTheTextFormOfTheKey(t *testing.T) {
	one := eventtest.Schema(t, `{"type": "record", "name": "One", "fields": [{"name": "id", "type": "long"}]}`)
	plan := &topology.Topology{Topics: []*topology.Topic{
		{Name: "text"},
		{Name: "long", KeyFormat: keyformat.Format{Kind: keyformat.Long}},
		{Name: "int", KeyFormat: keyformat.Format{Kind: keyformat.Int}},
		{Name: "uuid", KeyFormat: keyformat.Format{Kind: keyformat.UUID}},
		{Name: "bytes", KeyFormat: keyformat.Format{Kind: keyformat.Bytes}},
		{Name: "avro", KeyFormat: keyformat.Format{Kind: keyformat.Avro, Schema: one}},
	}}
	for _, test := range []struct {
		topic, key, want string
	}{
		{"text", "u-1", "u-1"},
		{"text", "\xff\x00", "ff00"},
		{"long", "\x00\x00\x00\x00\x00\x00\x01\x02", "258"},
		{"long", "u-1", "u-1"},
		{"int", "\xff\xff\xff\xff", "-1"},
		{"uuid", strings.Repeat("\xab", 16), "abababab-abab-abab-abab-abababababab"},
		{"bytes", "ab", "6162"},
		{"avro", string(codec.AppendLong(codec.AppendFrame(nil, 1), 7)), "7"},
		{"avro", "\x00\x01", "0001"},
		{"gone", "\x00\x00\x00\x07", "00000007"},
		{"gone", "u-1", "u-1"},
	} {
		in := &pipeline.Record{Topic: test.topic, Key: []byte(test.key)}
		r := deadletter.New(in, "dead", "p", "s", pipeline.Reject(pipeline.ReasonBadBody, "bad"), harness.Now)
		l := deadletter.Parse(&r)
		if got := newListedLetter(plan, &r, &l).Key; got != test.want || !utf8.ValidString(got) {
			t.Errorf("the key %x of %s is listed as %q, want %q", test.key, test.topic, got, test.want)
		}
	}
}
