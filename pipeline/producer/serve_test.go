package producer

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"

	"millrace/pipeline"
	"millrace/pipeline/event"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyring"
	"millrace/pipeline/openapi/openapitest"
)

// intakeWriter keeps the records instead of writing them.
type intakeWriter struct {
	records []pipeline.Record
	result  func(n int, done func(error)) // gives record n, from 1, its result; nil: acknowledged
}

func (w *intakeWriter) Write(_ context.Context, r *pipeline.Record, done func(error)) {
	w.records = append(w.records, *r)
	if w.result != nil {
		w.result(len(w.records), done)
		return
	}
	r.Partition, r.Offset = 3, int64(100+len(w.records))
	done(nil)
}

func (*intakeWriter) Flush(context.Context) error { return nil }

// newIntake returns an intake of the shop's events.
func newIntake(t *testing.T, w keyring.RecordWriter) *intake {
	t.Helper()
	return newIntakeWith(eventtest.ShopEncoder(t), w)
}

func newIntakeWith(encoder *event.Encoder, w keyring.RecordWriter) *intake {
	in := &intake{topic: "shop.events", writer: w, slots: make(chan *event.Encoder, 2), budget: newBudget(1 << 20), maxBody: 10_000, patience: time.Minute, log: slog.New(slog.DiscardHandler)}
	in.prepare(prometheus.NewRegistry(), encoder)
	return in
}

// post sends a body with headers given as "Name: value", and compares the answer with the
// OpenAPI document.
func post(t *testing.T, in http.Handler, body string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/events", strings.NewReader(body))
	for _, h := range headers {
		key, value, _ := strings.Cut(h, ": ")
		r.Header.Add(key, value)
	}
	w := httptest.NewRecorder()
	in.ServeHTTP(w, r)
	openapitest.Open(t, openAPIFile, nil).Check(body[:min(80, len(body))], http.MethodPost, "/v1/events", w.Code, w.Header(), w.Body.Bytes())
	return w
}

const (
	eventID   = "4707dafd-3ce1-5973-9f7b-1c9c452822e7"
	paidEvent = `{"id":"` + eventID + `","type":"OrderPaid","data":{"id":"o-1"}}`
	cloudPaid = `{"specversion":"1.0","id":"` + eventID + `","source":"/shop","type":"shop.OrderPaid","time":"2026-01-02T03:04:05Z","datacontenttype":"application/json","subject":"o-1","n":7,"data":{"id":"o-1"}}`

	asJSON   = "Content-Type: application/json"
	asCloud  = "Content-Type: application/cloudevents+json; charset=UTF-8"
	asClouds = "Content-Type: application/cloudevents-batch+json"
	trace    = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
)

// binaryHeaders are the headers of a CloudEvent in binary mode.
var binaryHeaders = []string{asJSON, "ce-specversion: 1.0", "ce-id: " + eventID, "ce-source: /shop", "ce-type: shop.OrderPaid", "ce-time: 2026-01-02T03:04:05Z", "ce-subject: o-1", "ce-n: 7"}

func TestAnswerHasTheOffsetsOfTheEvents(t *testing.T) {
	const one = `{"id":"` + eventID + `","topic":"shop.events","partition":3,"offset":101}`
	two := `{"id":"` + harness.ID + `","topic":"shop.events","partition":3,"offset":102}`
	for _, test := range []struct {
		name, body string
		headers    []string
		want       string
	}{
		{"an event", paidEvent, []string{asJSON}, one},
		{"an array", ` [` + paidEvent + `,{"type":"user_deleted","data":{"id":"u"}}]`, []string{asJSON}, one + "," + two},
		{"an empty array", `[]`, []string{asJSON}, ""},
		{"a CloudEvent", cloudPaid, []string{asCloud}, one},
		{"a batch of CloudEvents", `[` + cloudPaid + `]`, []string{asClouds}, one},
		{"an empty batch", `[]`, []string{asClouds}, ""},
		{"a CloudEvent in binary mode", `{"id":"o-1"}`, binaryHeaders, one},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := newIntake(t, &intakeWriter{})
			got := post(t, in, test.body, test.headers...)
			var answer struct{ Events []json.RawMessage }
			if err := json.Unmarshal(got.Body.Bytes(), &answer); err != nil || got.Code != http.StatusOK {
				t.Fatalf("%d %s", got.Code, got.Body)
			}
			var compact []string
			for _, e := range answer.Events {
				compact = append(compact, strings.Join(strings.Fields(strings.ReplaceAll(string(e), `": `, `":`)), ""))
			}
			if strings.Join(compact, ",") != test.want {
				t.Errorf("%s\nwant %s", compact, test.want)
			}
		})
	}
}

// The forms of a CloudEvent give the same record.
func TestFormsOfACloudEventGiveOneRecord(t *testing.T) {
	const want = "id=" + eventID + " type=OrderPaid n=7 source=/shop subject=o-1"
	for name, send := range map[string]func(*intake) *httptest.ResponseRecorder{
		"structured": func(in *intake) *httptest.ResponseRecorder {
			return post(t, in, cloudPaid, asCloud, "traceparent: "+trace)
		},
		"batch": func(in *intake) *httptest.ResponseRecorder {
			return post(t, in, "["+cloudPaid+"]", asClouds, "traceparent: "+trace)
		},
		"binary": func(in *intake) *httptest.ResponseRecorder {
			return post(t, in, `{"id":"o-1"}`, append(slices.Clone(binaryHeaders), "traceparent: "+trace)...)
		},
		"base64": func(in *intake) *httptest.ResponseRecorder {
			return post(t, in, strings.Replace(cloudPaid, `"data":{"id":"o-1"}`, `"data_base64":"eyJpZCI6Im8tMSJ9","data":null`, 1), asCloud, "traceparent: "+trace)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := &intakeWriter{}
			in := newIntake(t, w)
			in.cloudHeaders = true
			if name == "base64" {
				// Null data is data: only one of the two members is allowed.
				if got := send(in); got.Code != http.StatusBadRequest || !strings.Contains(got.Body.String(), "only one of data and data_base64") {
					t.Errorf("%d %s", got.Code, got.Body)
				}
				got := post(t, in, strings.Replace(cloudPaid, `"data":{"id":"o-1"}`, `"data_base64":"eyJpZCI6Im8tMSJ9"`, 1), asCloud, "traceparent: "+trace)
				if got.Code != http.StatusOK {
					t.Fatalf("%d %s", got.Code, got.Body)
				}
			} else if got := send(in); got.Code != http.StatusOK {
				t.Fatalf("%d %s", got.Code, got.Body)
			}
			r := w.records[0]
			if string(r.Key) != "o-1" || !r.Time.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
				t.Errorf("key %s at %v", r.Key, r.Time)
			}
			var headers []string
			for _, h := range r.Headers {
				headers = append(headers, h.Key+"="+string(h.Value))
			}
			wantHeaders := []string{
				"traceparent=" + trace, "ce_id=" + eventID, "ce_n=7", "ce_source=/shop", "ce_specversion=1.0",
				"ce_subject=o-1", "ce_time=2026-01-02T03:04:05Z", "ce_type=shop.OrderPaid", "content-type=application/avro",
			}
			if !slices.Equal(headers, wantHeaders) {
				t.Errorf("headers %q\nwant %q", headers, wantHeaders)
			}
			for _, part := range strings.Fields(want) {
				_, value, _ := strings.Cut(part, "=")
				if !strings.Contains(string(r.Value), value) {
					t.Errorf("%s is not in the value %q", part, r.Value)
				}
			}
		})
	}
}

func TestAnswerNamesTheFieldOfABadRequest(t *testing.T) {
	cloud := func(old, new string) string { return strings.Replace(cloudPaid, old, new, 1) }
	with := func(headers []string, more ...string) []string {
		var out []string
		for _, h := range headers {
			if !slices.ContainsFunc(more, func(m string) bool {
				a, _, _ := strings.Cut(m, ":")
				b, _, _ := strings.Cut(h, ":")
				return strings.EqualFold(a, b)
			}) {
				out = append(out, h)
			}
		}
		return append(out, more...)
	}
	for _, test := range []struct {
		name, body string
		headers    []string
		status     int
		want       string // part of the answer
	}{
		{"no JSON", `{`, []string{asJSON}, 400, `{"event":0,"detail":"the JSON ends too early"}`},
		{"no body", ``, []string{asJSON}, 400, `the JSON ends too early`},
		{"no object", `7`, []string{asJSON}, 400, `expected an event, a JSON object`},
		{"a field deep within", `[` + paidEvent + `,{"type":"OrderCreated","data":{"id":"o","user_id":"u","total_amount":1,"items":[{"product_id":"p","quantity":"x","price":1}]}},{}]`, []string{asJSON}, 400,
			`"errors":[{"event":1,"field":"data.items[0].quantity","detail":"expected int, found string \"x\""},{"event":2,"field":"type","detail":"missing;`},
		{"not UTF-8", "{\"type\":\"\xff\"}", []string{asJSON}, 400, `not UTF-8`},

		{"specversion missing", cloud(`"specversion":"1.0",`, ``), []string{asCloud}, 400, `"field":"specversion","detail":"missing;`},
		{"specversion unknown", cloud(`"1.0"`, `"0.3"`), []string{asCloud}, 400, `"field":"specversion","detail":"expected \"1.0\", found \"0.3\""`},
		{"id missing", cloud(`"id":"`+eventID+`",`, ``), []string{asCloud}, 400, `"field":"id","detail":"missing;`},
		{"id empty", cloud(eventID, ``), []string{asCloud}, 400, `"field":"id","detail":"missing;`},
		{"id null", cloud(`"`+eventID+`"`, `null`), []string{asCloud}, 400, `"field":"id","detail":"missing;`},
		{"id a number", cloud(`"`+eventID+`"`, `7`), []string{asCloud}, 400, `"field":"id","detail":"expected a string, found 7"`},
		{"id no UUID, as the schema has it", cloud(eventID, `A234-1234-1234`), []string{asCloud}, 400, `"field":"id","detail":"expected string (uuid), found string \"A234-1234-1234\""`},
		{"source missing", cloud(`"source":"/shop",`, ``), []string{asCloud}, 400, `"field":"source","detail":"missing;`},
		{"type missing", cloud(`"type":"shop.OrderPaid",`, ``), []string{asCloud}, 400, `"field":"type","detail":"missing;`},
		{"type unknown", cloud(`shop.OrderPaid`, `com.example.someevent`), []string{asCloud}, 400, `"field":"type","detail":"unknown event type \"com.example.someevent\"`},
		{"time wrong", cloud(`2026-01-02T03:04:05Z`, `today`), []string{asCloud}, 400, `"field":"time","detail":"expected long (timestamp-micros), found string \"today\"`},
		{"time empty", cloud(`2026-01-02T03:04:05Z`, ``), []string{asCloud}, 400, `"field":"time","detail":"empty; leave the attribute out"`},
		{"subject empty", cloud(`"subject":"o-1"`, `"subject":""`), []string{asCloud}, 400, `"field":"subject","detail":"empty; leave the attribute out"`},
		{"dataschema empty", cloud(`"n":7`, `"dataschema":""`), []string{asCloud}, 400, `"field":"dataschema","detail":"empty; leave the attribute out"`},
		{"binary: time empty", `{"id":"o"}`, with(binaryHeaders, "ce-time: "), 400, `"field":"time","detail":"empty; leave the attribute out"`},
		{"attribute in upper case", cloud(`"n":7`, `"myExt":7`), []string{asCloud}, 400, `"field":"myExt","detail":"the name of an attribute`},
		{"attribute an object", cloud(`"n":7`, `"n":{}`), []string{asCloud}, 400, `"field":"n","detail":"expected a string, a number or a boolean"`},
		{"attribute twice", cloud(`"n":7`, `"n":7,"n":8`), []string{asCloud}, 400, `"field":"n","detail":"duplicate key"`},
		{"data missing", cloud(`,"data":{"id":"o-1"}`, ``), []string{asCloud}, 400, `"field":"data","detail":"missing"`},
		{"data of another form", cloud(`application/json`, `text/xml`), []string{asCloud}, 400, `"field":"datacontenttype","detail":"expected application/json, found \"text/xml\""`},
		{"data no base64", cloud(`"data":{"id":"o-1"}`, `"data_base64":"?"`), []string{asCloud}, 400, `"field":"data_base64","detail":"expected a string in base64"`},
		{"data's field", cloud(`{"id":"o-1"}`, `{}`), []string{asCloud}, 400, `"field":"data.id","detail":"missing; expected string"`},
		{"no array", cloudPaid, []string{asClouds}, 400, `expected an array of events`},
		{"second of a batch", `[` + cloudPaid + `,7]`, []string{asClouds}, 400, `{"event":1,"detail":"expected a CloudEvent, a JSON object"}`},

		{"binary: no id", `{"id":"o"}`, with(binaryHeaders, "ce-id: "), 400, `"field":"id","detail":"missing;`},
		{"binary: no data", ``, binaryHeaders, 400, `"field":"data","detail":"the JSON ends too early"`},
		{"binary: a bad escape", `{"id":"o"}`, with(binaryHeaders, "ce-subject: %zz"), 400, `"field":"subject"`},
		{"binary: an escape that is not UTF-8", `{"id":"o"}`, with(slices.DeleteFunc(slices.Clone(binaryHeaders), func(h string) bool { return strings.HasPrefix(h, "ce-id:") }), "ce-id: bad%FF"), 400, `"field":"id","detail":"byte 3 (0xff) is not UTF-8"`},
		{"binary: half of a surrogate pair", `{"id":"\udbff"}`, binaryHeaders, 400, `"field":"data","detail":"column 8: not Unicode: \\udbff is half of a surrogate pair"`},
		{"half of a surrogate pair", cloud(eventID, `j-\ud800`), []string{asCloud}, 400, `\\ud800 is half of a surrogate pair`},
		{"binary: data of another form", `<o/>`, with(binaryHeaders, "Content-Type: text/xml"), 415, `the data of a CloudEvent must be JSON`},

		{"no Content-Type", paidEvent, nil, 415, `application/json, application/cloudevents+json`},
		{"a form", "a=b", []string{"Content-Type: application/x-www-form-urlencoded"}, 415, `are accepted`},
		{"CloudEvents in Avro", "", []string{"Content-Type: application/cloudevents+avro"}, 415, `of CloudEvents, `},
		{"another charset", paidEvent, []string{"Content-Type: application/json; charset=latin1"}, 415, `only UTF-8`},
		{"packed", paidEvent, []string{asJSON, "Content-Encoding: gzip"}, 415, `Content-Encoding`},
		{"too large", paidEvent + strings.Repeat(" ", 10_000), []string{asJSON}, 413, `at most 10000 bytes`},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := &intakeWriter{}
			got := post(t, newIntake(t, w), test.body, test.headers...)
			if got.Code != test.status || !strings.Contains(got.Body.String(), test.want) {
				t.Errorf("%d %s\nwant %d %s", got.Code, got.Body, test.status, test.want)
			}
			var p problem
			if err := json.Unmarshal(got.Body.Bytes(), &p); err != nil || p.Status != test.status || p.Title == "" || got.Header().Get("Content-Type") != "application/problem+json" {
				t.Errorf("not a problem of RFC 9457: %s", got.Body)
			}
			if len(w.records) > 0 {
				t.Error("something was sent")
			}
		})
	}
}

func TestHeaderOfACloudEventIsUnescaped(t *testing.T) {
	w := &intakeWriter{}
	in := newIntake(t, w)
	in.cloudHeaders = true
	if got := post(t, in, `{"id":"o-1"}`, append(slices.Clone(binaryHeaders), "ce-comment: Euro%20%E2%82%AC")...); got.Code != http.StatusOK {
		t.Fatalf("%d %s", got.Code, got.Body)
	}
	if v, _ := w.records[0].Header("ce_comment"); string(v) != "Euro €" {
		t.Errorf("%q", v)
	}
}

func TestValidTraceContextIsCopiedToTheRecord(t *testing.T) {
	const other = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
	for _, test := range []struct {
		name, body string
		headers    []string
		want       string
	}{
		{"of the request", paidEvent, []string{asJSON, "traceparent: " + trace, "tracestate: a=1", "tracestate: b=2"}, trace + " a=1,b=2"},
		{"of the event before the request's", strings.Replace(cloudPaid, `"n":7`, `"traceparent":"`+other+`","tracestate":"x=y"`, 1), []string{asCloud, "traceparent: " + trace}, other + " x=y"},
		{"none", paidEvent, []string{asJSON}, ""},
		{"nonsense", paidEvent, []string{asJSON, "traceparent: x"}, ""},
		{"of zeros", paidEvent, []string{asJSON, "traceparent: 00-00000000000000000000000000000000-00f067aa0ba902b7-01"}, ""},
		{"in upper case", paidEvent, []string{asJSON, "traceparent: " + strings.ToUpper(trace)}, ""},
		{"with a state that is too long", paidEvent, []string{asJSON, "traceparent: " + trace, "tracestate: a=" + strings.Repeat("x", 512)}, trace},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := &intakeWriter{}
			if got := post(t, newIntake(t, w), test.body, test.headers...); got.Code != http.StatusOK {
				t.Fatalf("%d %s", got.Code, got.Body)
			}
			var values []string
			for _, h := range w.records[0].Headers {
				values = append(values, string(h.Value))
			}
			if got := strings.Join(values, " "); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// A failed record may have been written or not; the answer is the same.
func TestUnacknowledgedEventsAreNotReportedAsSent(t *testing.T) {
	for name, result := range map[string]func(int, func(error)){
		"one failed": func(n int, done func(error)) {
			if n == 2 {
				done(errors.New("away"))
			} else {
				done(nil)
			}
		},
		"all failed": func(_ int, done func(error)) { done(errors.New("away")) },
		"silence":    func(int, func(error)) {},
	} {
		t.Run(name, func(t *testing.T) {
			in := newIntake(t, &intakeWriter{result: result})
			if name == "silence" {
				in.patience = time.Millisecond
			}
			got := post(t, in, "["+paidEvent+","+paidEvent+"]", asJSON)
			if got.Code != http.StatusServiceUnavailable || got.Header().Get("Retry-After") != "1" || !strings.Contains(got.Body.String(), "send them again with the same ids") {
				t.Errorf("%d %v %s", got.Code, got.Header(), got.Body)
			}
			if n := testutil.ToFloat64(in.answers.WithLabelValues("503")); n != 1 {
				t.Errorf("%v requests are counted", n)
			}
		})
	}
}

func TestTooManyRequestsGetStatus429(t *testing.T) {
	var held []func(error)
	begun := make(chan struct{}, 2)
	in := newIntake(t, recordWriterFunc(func(_ *pipeline.Record, done func(error)) {
		held = append(held, done)
		begun <- struct{}{}
	}))
	answers := make(chan int, 2)
	for i := range cap(in.slots) {
		go func() { answers <- post(t, in, paidEvent, asJSON).Code }()
		<-begun
		if len(held) != i+1 {
			t.Fatal("a request did not start")
		}
	}
	got := post(t, in, paidEvent, asJSON)
	if got.Code != http.StatusTooManyRequests || got.Header().Get("Retry-After") != "1" {
		t.Errorf("%d %v %s", got.Code, got.Header(), got.Body)
	}
	for _, done := range held {
		done(nil)
		if code := <-answers; code != http.StatusOK {
			t.Errorf("answered %d", code)
		}
	}
	go func() { answers <- post(t, in, paidEvent, asJSON).Code }()
	<-begun
	held[2](nil)
	if code := <-answers; code != http.StatusOK {
		t.Errorf("after the others: %d", code)
	}
}

// Requests whose bodies are slow keep no one out.
func TestSlowBodiesTakeNoSlot(t *testing.T) {
	in := newIntake(t, &intakeWriter{})
	var slow []*io.PipeWriter
	answers := make(chan *httptest.ResponseRecorder, 10)
	for range 10 {
		body, send := io.Pipe()
		slow = append(slow, send)
		go func() {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/events", body)
			r.Header.Set("Content-Type", "application/json")
			w := httptest.NewRecorder()
			in.ServeHTTP(w, r)
			answers <- w
		}()
		if _, err := io.WriteString(send, paidEvent[:10]); err != nil { // it is read
			t.Fatal(err)
		}
	}
	if got := post(t, in, paidEvent, asJSON); got.Code != http.StatusOK {
		t.Errorf("a request beside slow ones gets %d %s", got.Code, got.Body)
	}
	for i, send := range slow {
		if i%2 == 0 {
			_ = send.CloseWithError(errors.New("the client is gone"))
			if got := <-answers; got.Code != http.StatusBadRequest || !strings.Contains(got.Body.String(), "the body is incomplete") {
				t.Errorf("a body without an end gets %d %s", got.Code, got.Body)
			}
			continue
		}
		if _, err := io.WriteString(send, paidEvent[10:]); err != nil {
			t.Fatal(err)
		}
		_ = send.Close()
		if got := <-answers; got.Code != http.StatusOK {
			t.Errorf("a slow body gets %d %s", got.Code, got.Body)
		}
	}
}

// A body for which there is no memory gets status 429: the slow one, if there is one.
func TestBodiesBeyondTheMemoryGetStatus429(t *testing.T) {
	in := newIntake(t, &intakeWriter{})
	in.budget, in.maxBody = newBudget(64<<10), 1<<20
	refused := func(got *httptest.ResponseRecorder, why string) {
		t.Helper()
		if got.Code != http.StatusTooManyRequests || got.Header().Get("Retry-After") != "1" || !strings.Contains(got.Body.String(), why+"; nothing of this request was sent") {
			t.Errorf("the answer is %d %s", got.Code, got.Body)
		}
	}
	refused(post(t, in, strings.Repeat(" ", 80<<10)+paidEvent, asJSON), "the bodies of other requests take all memory")

	synctest.Test(t, func(t *testing.T) {
		server, client := net.Pipe()
		answer := make(chan *httptest.ResponseRecorder, 1)
		go func() {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/events", client)
			r.Header.Set("Content-Type", "application/json")
			w := &deadlineRecorder{httptest.NewRecorder(), client}
			in.ServeHTTP(w, r)
			answer <- w.ResponseRecorder
		}()
		if _, err := io.WriteString(server, strings.Repeat(" ", 20<<10)); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Second)
		if got := post(t, in, strings.Repeat(" ", 40<<10)+paidEvent, asJSON); got.Code != http.StatusOK {
			t.Errorf("a quick body gets %d %s", got.Code, got.Body)
		}
		refused(<-answer, "the body arrived slowly, and other requests needed its memory")
		_ = server.Close()
	})
}

// deadlineRecorder sets the deadlines of a connection.
type deadlineRecorder struct {
	*httptest.ResponseRecorder
	conn net.Conn
}

func (r *deadlineRecorder) SetReadDeadline(at time.Time) error { return r.conn.SetReadDeadline(at) }

func TestAnswersListAFewOfManyFaults(t *testing.T) {
	in := newIntake(t, &intakeWriter{})
	in.maxBody = 1 << 20
	got := post(t, in, "["+strings.Repeat("1,", maxEvents-1)+"1]", asJSON)
	var p problem
	if err := json.Unmarshal(got.Body.Bytes(), &p); err != nil {
		t.Fatal(err)
	}
	if got.Code != http.StatusBadRequest || len(p.Errors) != maxFaults || p.Detail != "10000 events are invalid; nothing of the request was sent; only the first 100 are listed" {
		t.Errorf("%d with %d faults: %s", got.Code, len(p.Errors), p.Detail)
	}
	got = post(t, in, "["+strings.Repeat("1,", maxEvents)+"1]", asJSON)
	if got.Code != http.StatusRequestEntityTooLarge || !strings.Contains(got.Body.String(), "a request may have at most 10000 events") {
		t.Errorf("more events get %d %s", got.Code, got.Body)
	}
}

// recordWriterFunc is a function as a [keyring.RecordWriter].
type recordWriterFunc func(r *pipeline.Record, done func(error))

func (f recordWriterFunc) Write(_ context.Context, r *pipeline.Record, done func(error)) { f(r, done) }
func (recordWriterFunc) Flush(context.Context) error                                     { return nil }

func TestIncompleteBodyIsNotSent(t *testing.T) {
	w := &intakeWriter{}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/events", io.MultiReader(strings.NewReader(paidEvent), errReader{}))
	r.Header.Set("Content-Type", "application/json")
	answer := httptest.NewRecorder()
	newIntake(t, w).ServeHTTP(answer, r)
	if answer.Code != http.StatusBadRequest || len(w.records) > 0 {
		t.Errorf("%d %s", answer.Code, answer.Body)
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("reset") }

// FuzzIntake: every request gets an answer, and nothing of a refused request is sent.
func FuzzIntake(f *testing.F) {
	f.Add("application/json", "", "["+paidEvent+"]")
	f.Add("application/cloudevents+json", "", cloudPaid)
	f.Add("application/cloudevents-batch+json", "", "["+cloudPaid+"]")
	f.Add("application/json", "1.0", `{"id":"o"}`)
	f.Fuzz(func(t *testing.T, kind, version, body string) {
		w := &intakeWriter{}
		header := http.Header{"Content-Type": {kind}}
		if version != "" {
			header["Ce-Specversion"], header["Ce-Id"], header["Ce-Source"], header["Ce-Type"] = []string{version}, []string{eventID}, []string{version}, []string{"OrderPaid"}
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/events", strings.NewReader(body))
		r.Header = header
		answer := httptest.NewRecorder()
		newIntake(t, w).ServeHTTP(answer, r)
		switch answer.Code {
		case 200:
		case 400, 413, 415:
			if len(w.records) > 0 {
				t.Fatalf("%d records were sent, and the answer is %d", len(w.records), answer.Code)
			}
		default:
			t.Fatalf("answer %d", answer.Code)
		}
	})
}

// An event that Kafka refuses for its content is a fault of its request: 400. The answer
// names it, and tells that the others are written. Other requests are not affected.
func TestEventThatKafkaRefusesIsAFaultOfItsRequest(t *testing.T) {
	w := &intakeWriter{result: func(n int, done func(error)) {
		if n == 2 {
			done(kerr.InvalidTimestamp)
		} else {
			done(nil)
		}
	}}
	in := newIntake(t, w)
	got := post(t, in, "["+paidEvent+","+paidEvent+","+paidEvent+"]", asJSON)
	var answer problem
	if err := json.Unmarshal(got.Body.Bytes(), &answer); err != nil || got.Code != http.StatusBadRequest {
		t.Fatalf("%d %s", got.Code, got.Body)
	}
	if len(answer.Errors) != 1 || answer.Errors[0].Event != 1 || !strings.HasPrefix(answer.Errors[0].Detail, "Kafka refused the event: INVALID_TIMESTAMP") {
		t.Errorf("the faults are %+v", answer.Errors)
	}
	if answer.Detail != "Kafka refused 1 events; the other 2 are written" || got.Header().Get("Retry-After") != "" {
		t.Errorf("the answer says %q", answer.Detail)
	}
	for status, n := range map[string]float64{"rejected": 1, "sent": 2, "failed": 0} {
		if got := testutil.ToFloat64(in.metrics.events.WithLabelValues("OrderPaid", status)); got != n {
			t.Errorf("%v events are counted as %s, want %v", got, status, n)
		}
	}
}

// An event whose time the topic does not accept is refused before anything is written.
func TestEventWithATimeThatTheTopicDoesNotAcceptIsRefused(t *testing.T) {
	w := &intakeWriter{}
	encoder := eventtest.ShopEncoder(t)
	encoder.SetLimits(kafka.Limits{"shop.events": {After: time.Hour}})
	in := newIntakeWith(encoder, w)
	late := harness.Now.Add(3 * time.Hour).UTC().Format(time.RFC3339)
	for _, test := range []struct{ body, content, field string }{
		{`[` + paidEvent + `,{"type":"OrderPaid","timestamp":"` + late + `","data":{"id":"o-1"}}]`, asJSON, "timestamp"},
		{strings.Replace(cloudPaid, "2026-01-02T03:04:05Z", late, 1), asCloud, "time"},
	} {
		got := post(t, in, test.body, test.content)
		var answer problem
		if err := json.Unmarshal(got.Body.Bytes(), &answer); err != nil || got.Code != http.StatusBadRequest || len(answer.Errors) != 1 {
			t.Fatalf("%d %s", got.Code, got.Body)
		}
		if e := answer.Errors[0]; e.Field != test.field || !strings.Contains(e.Detail, "shop.events takes at most 1h0m0s ahead of the clock") {
			t.Errorf("the fault is %+v", e)
		}
	}
	if len(w.records) != 0 {
		t.Errorf("%d records were written", len(w.records))
	}
}
