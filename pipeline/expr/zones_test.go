package expr

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr/zone"
)

const zoneEvent = `{"type":"record","name":"E","fields":[
	{"name":"at","type":{"type":"long","logicalType":"timestamp-micros"}},
	{"name":"zone","type":"string"},
	{"name":"text","type":"string"},
	{"name":"n","type":"double"},
	{"name":"m","type":{"type":"map","values":"long"}}]}`

// zoneExpressions cover every function that has to do with time, and others that could
// depend on the machine.
var zoneExpressions = []string{
	"string(at)", "string(at + duration('1h'))", "string(timestamp(text))", "string(timestamp(text) + duration('5000h'))", "string(timestamp('2026-03-01T00:00:00-05:00') + duration('720h'))",
	"string(timestamp(text).truncate('day'))", "string(at.truncate('week'))", "string(at.truncate(duration('7h')))", "timestamp(text).format('%Y-%m-%d %H:%M:%S.%f %j')", "string(parseTime('2026-01-31', '%Y-%m-%d'))",
	"string(timestamp(0))", "string(timestamp(int(n)))", "string(fromUnixMillis(1))", "'%s'.format([timestamp(text)])", "'%s'.format([m])", "'%.3f %e'.format([n, n])", "string(n)", "string(unixMillis(timestamp(text)))",
	"m.map(k, k).join(',')", "m.transformList(k, v, k + string(v)).join(',')", "string(timestamp(text) - at)", "string(dyn(timestamp(text)))", "string([timestamp(text)][0])",
}

func zoneResults(t *testing.T) []byte {
	schema := parse(t, zoneEvent)
	env := newEnv(t, Root{Schema: schema})
	v := view(t, schema, encodeJSON(t, schema, `{"at":"2026-06-30T23:30:15.123456Z","zone":"America/New_York","text":"2026-03-01T00:00:00+09:00","n":0.1,"m":{"z":1,"b":2,"a":3,"y":4,"c":5,"x":6}}`))
	all := zoneExpressions
	for _, function := range zone.Functions() {
		for _, name := range []string{"", "'Asia/Tokyo'", "'America/New_York'", "'UTC'", "''", "'+05:30'", "zone"} {
			all = append(all, fmt.Sprintf("string(at.%s(%s)) + string(timestamp(text).%s(%s))", function, name, function, name))
		}
	}
	var out bytes.Buffer
	for _, src := range all {
		p, err := env.Compile(src, Value(&codec.Node{Kind: codec.String}, "x", "E"))
		if err != nil {
			t.Fatalf("%s: %v", src, err)
		}
		bind(p, schema)
		enc, err := p.Append(nil, v)
		if err != nil {
			t.Fatal(err)
		}
		text, _, err := codec.ReadText(enc)
		fmt.Fprintf(&out, "%s = %s %v\n", src, text, err)
	}
	return out.Bytes()
}

// The same expressions give the same bytes on machines with other zones.
func TestExpressionsDoNotDependOnTheMachine(t *testing.T) {
	if file := os.Getenv("ZONE_RESULTS"); file != "" {
		if err := os.WriteFile(file, zoneResults(t), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want := zoneResults(t)
	for _, line := range []string{
		"string(timestamp(text) + duration('5000h')) = 2026-09-24T23:00:00Z <nil>", // 2026-02-28T15:00:00Z + 5000 h
		`string(at.getHours('Asia/Tokyo')) + string(timestamp(text).getHours('Asia/Tokyo')) = 80 <nil>`,
		`string(at.getHours(zone)) + string(timestamp(text).getHours(zone)) = 1910 <nil>`,
	} {
		if !strings.Contains(string(want), line) {
			t.Errorf("no %s", line)
		}
	}
	for _, env := range [][]string{{"TZ=UTC"}, {"TZ=Asia/Tokyo"}, {"TZ=America/New_York", "ZONEINFO=/nonexistent"}, {"TZ=garbage", "ZONEINFO=" + os.Args[0], "LANG=de_DE.UTF-8", "LC_ALL=de_DE.UTF-8"}} {
		file := t.TempDir() + "/results"
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestExpressionsDoNotDependOnTheMachine$")
		cmd.Env = append(append(os.Environ(), env...), "ZONE_RESULTS="+file)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", env, err, out)
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("with %v:\n%s\nwant\n%s", env, got, want)
		}
	}
}

func TestAConstantZoneIsCheckedWhenTheExpressionCompiles(t *testing.T) {
	schema := parse(t, zoneEvent)
	env := newEnv(t, Root{Schema: schema})
	for src, want := range map[string]string{
		"at.getHours('Local') > 1":                "the time zone Local is another one on each machine; name a zone such as 'Europe/Berlin', or 'UTC'",
		"at.getDate('europe/berlin') > 1":         `there is no time zone "europe/berlin"; did you mean "Europe/Berlin"?`,
		"at.getDayOfWeek('Asia/Tokio') > 1":       `there is no time zone "Asia/Tokio"; did you mean "Asia/Tokyo"?`,
		"at.getHours('25:00') > 1":                `the offset "25:00" is not from -23:59 to +23:59; write an offset as '+05:30'`,
		"[at].exists(a, a.getHours('Local') > 1)": "the time zone Local is another one on each machine",
	} {
		_, err := env.Compile(src, Condition("a filter"))
		var faults Errors
		if !errors.As(err, &faults) || !strings.Contains(faults[0].Error(), want) || !strings.HasPrefix(src[faults[0].Offset:], "'") {
			t.Errorf("%s: got %v, want %s", src, err, want)
		}
	}
	for src, uses := range map[string]bool{
		"at.getHours('Europe/Berlin') > 1": true, "at.getHours(zone) > 1": true, "[at].exists(a, a.getDate('Asia/Tokyo') > 1)": true,
		"at.getHours() > 1": false, "at.getHours('UTC') > 1": false, "at.getHours('+05:30') > 1": false, "n > 1.0": false, "duration('1h').getHours() == 1": false,
	} {
		p, err := env.Compile(src, Condition("a filter"))
		if err != nil || p.UsesZones() != uses {
			t.Errorf("%s: %v; uses zones: %v", src, err, p.UsesZones())
		}
	}
}

func TestAnUnknownZoneInAnEventIsARejection(t *testing.T) {
	schema := parse(t, zoneEvent)
	env := newEnv(t, Root{Schema: schema})
	p, err := env.Compile("at.getHours(zone) > 1", Condition("a filter"))
	if err != nil {
		t.Fatal(err)
	}
	bind(p, schema)
	for name, want := range map[string]string{"Local": "the time zone Local is another one on each machine", "Asia/Tokio": `there is no time zone "Asia/Tokio"`} {
		v := view(t, schema, encodeJSON(t, schema, `{"at":"2026-06-30T23:30:15Z","zone":"`+name+`","text":"","n":0,"m":{}}`))
		if _, err := p.Bool(v); pipeline.ClassOf(err) != pipeline.ClassReject || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
