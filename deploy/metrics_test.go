package deploy_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.yaml.in/yaml/v4"

	"millrace/pipeline/kafka"
	"millrace/pipeline/kafka/properties"
)

// metric is a metric of the programs.
type metric struct {
	name, kind, help string
	labels           []string
}

// ownMetrics reads the metrics of the programs from their source, by name. Dashboards
// are checked against the code itself, not against a separate list of names.
func ownMetrics(t *testing.T) map[string]metric {
	t.Helper()
	found := map[string]metric{}
	fset := token.NewFileSet()
	err := filepath.WalkDir("../pipeline", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(fset, path, nil, 0)
		if err != nil {
			return err
		}
		for _, m := range metricsOf(t, fset, file) {
			if other, ok := found[m.name]; ok && other.help != m.help {
				t.Errorf("%s: two metrics have the name %s but different help texts", path, m.name)
			}
			found[m.name] = m
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < 10 {
		t.Fatalf("found only %d metrics in the source: are they created in a different way now?", len(found))
	}
	return found
}

// metricsOf finds the calls of prometheus.NewCounterVec and similar functions in a file.
// A call inside a helper function yields one metric for each call of the helper in the
// file.
func metricsOf(t *testing.T, fset *token.FileSet, file *ast.File) (out []metric) {
	t.Helper()
	var within []ast.Node
	ast.Inspect(file, func(n ast.Node) bool {
		if n == nil {
			within = within[:len(within)-1]
			return true
		}
		within = append(within, n)
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || !isIdent(sel.X, "prometheus") || !strings.HasPrefix(sel.Sel.Name, "New") || len(call.Args) == 0 {
			return true
		}
		kind := strings.ToLower(strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(sel.Sel.Name, "New"), "Vec"), "Func"))
		if kind == "desc" {
			kind = "value"
		} else if !slices.Contains([]string{"counter", "gauge", "histogram", "summary"}, kind) {
			return true
		}
		for _, args := range bindings(file, within) {
			m, err := readMetric(kind, call, args)
			if err != nil {
				t.Errorf("%s: %v", fset.Position(call.Pos()), err)
				continue
			}
			out = append(out, m)
		}
		return true
	})
	return out
}

func isIdent(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}

// bindings returns the arguments of the innermost function that encloses a node: one
// binding for each call of the function in the file, or a single nil binding if there
// is none.
func bindings(file *ast.File, within []ast.Node) []map[string][]ast.Expr {
	for i := len(within) - 1; i > 0; i-- {
		var name string
		var params *ast.FieldList
		switch fn := within[i].(type) {
		case *ast.FuncDecl:
			name, params = fn.Name.Name, fn.Type.Params
		case *ast.FuncLit:
			assign, ok := within[i-1].(*ast.AssignStmt)
			if !ok || len(assign.Lhs) != 1 {
				continue
			}
			name, params = assign.Lhs[0].(*ast.Ident).Name, fn.Type.Params
		default:
			continue
		}
		var all []map[string][]ast.Expr
		ast.Inspect(file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok && isIdent(call.Fun, name) {
				all = append(all, bind(params, call.Args))
			}
			return true
		})
		if len(all) > 0 {
			return all
		}
		break
	}
	return []map[string][]ast.Expr{nil}
}

func bind(params *ast.FieldList, args []ast.Expr) map[string][]ast.Expr {
	bound := map[string][]ast.Expr{}
	for _, field := range params.List {
		_, variadic := field.Type.(*ast.Ellipsis)
		for _, name := range field.Names {
			n := min(1, len(args))
			if variadic {
				n = len(args)
			}
			bound[name.Name], args = args[:n], args[n:]
		}
	}
	return bound
}

// literal returns the composite literal that an expression is, or that initializes the
// local variable that it names.
func literal(e ast.Expr) (*ast.CompositeLit, bool) {
	if id, ok := e.(*ast.Ident); ok && id.Obj != nil {
		assign, ok := id.Obj.Decl.(*ast.AssignStmt)
		if !ok || len(assign.Rhs) != 1 {
			return nil, false
		}
		e = assign.Rhs[0]
	}
	lit, ok := e.(*ast.CompositeLit)
	return lit, ok
}

// readMetric reads a metric from the call that creates it. args holds the arguments of
// the enclosing function.
func readMetric(kind string, call *ast.CallExpr, args map[string][]ast.Expr) (m metric, err error) {
	m.kind = kind
	rest := call.Args[1:]
	if opts, ok := call.Args[0].(*ast.CompositeLit); ok {
		for _, e := range opts.Elts {
			if err := m.readOption(e.(*ast.KeyValueExpr), args); err != nil {
				return m, err
			}
		}
	} else { // NewDesc
		if m.name, err = text(call.Args[0], args); err != nil {
			return m, err
		}
		if m.help, err = text(call.Args[1], args); err != nil {
			return m, err
		}
		rest = call.Args[2:]
	}
	if m.name == "" || m.help == "" {
		return m, fmt.Errorf("the metric has no name or no help")
	}
	if len(rest) == 0 {
		return m, nil
	}
	var labels []ast.Expr
	switch l := rest[0].(type) {
	case *ast.CompositeLit:
		labels = l.Elts
	case *ast.Ident:
		labels = args[l.Name]
	}
	return m, m.readLabels(labels, args)
}

// readOption reads a field of prometheus.CounterOpts and similar types.
func (m *metric) readOption(kv *ast.KeyValueExpr, args map[string][]ast.Expr) (err error) {
	switch key := kv.Key.(*ast.Ident).Name; key {
	case "Name":
		m.name, err = text(kv.Value, args)
	case "Help":
		m.help, err = text(kv.Value, args)
	case "ConstLabels":
		labels, ok := literal(kv.Value)
		if !ok {
			return fmt.Errorf("write ConstLabels as a literal, or as a local variable that is initialized with one")
		}
		var keys []ast.Expr
		for _, l := range labels.Elts {
			keys = append(keys, l.(*ast.KeyValueExpr).Key)
		}
		return m.readLabels(keys, args)
	case "Namespace", "Subsystem":
		return fmt.Errorf("write the full name of the metric in Name, without %s, to make it searchable", key)
	}
	return err
}

func (m *metric) readLabels(labels []ast.Expr, args map[string][]ast.Expr) error {
	for _, l := range labels {
		label, err := text(l, args)
		if err != nil {
			return err
		}
		m.labels = append(m.labels, label)
	}
	return nil
}

// text evaluates an expression of string literals, parameters and +.
func text(e ast.Expr, args map[string][]ast.Expr) (string, error) {
	switch e := e.(type) {
	case *ast.BasicLit:
		return strconv.Unquote(e.Value)
	case *ast.BinaryExpr:
		x, err := text(e.X, args)
		if err != nil {
			return "", err
		}
		y, err := text(e.Y, args)
		return x + y, err
	case *ast.Ident:
		if bound := args[e.Name]; len(bound) == 1 {
			return text(bound[0], nil)
		}
	}
	return "", fmt.Errorf("cannot evaluate the name, help or labels of the metric: use string literals")
}

// allMetrics returns the labels of all metrics by name: the metrics of the programs, the
// Kafka client, the Go runtime and Prometheus itself.
func allMetrics(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{
		"up": {}, "ALERTS": {"alertname", "alertstate"},
	}
	for name, m := range ownMetrics(t) {
		all[name] = m.labels
		if m.kind == "histogram" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				all[name+suffix] = append([]string{"le"}, m.labels...)
			}
		}
	}
	r := recorder(all)
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	opts, err := kafka.Config{Brokers: []string{properties.DefaultBroker}, Registerer: r}.Options()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kgo.NewClient(opts...) // it is not used, so it does not connect
	if err != nil {
		t.Fatal(err)
	}
	client.Close()
	return all
}

// recorder is a registry that records the names and labels of the metrics that
// collectors describe.
type recorder map[string][]string

var descForm = regexp.MustCompile(`fqName: "([^"]+)".*constLabels: \{([^}]*)\}, variableLabels: \{([^}]*)\}`)

func (r recorder) Register(c prometheus.Collector) error {
	descs := make(chan *prometheus.Desc, 1000)
	c.Describe(descs)
	close(descs)
	for d := range descs {
		f := descForm.FindStringSubmatch(d.String())
		if f == nil {
			return fmt.Errorf("unexpected form of a metric description: %v", d)
		}
		labels := strings.FieldsFunc(f[3], func(r rune) bool { return r == ',' || r == ' ' })
		for _, m := range matcherForm.FindAllStringSubmatch(f[2], -1) {
			labels = append(labels, m[1])
		}
		r[f[1]] = labels
	}
	return nil
}

func (r recorder) MustRegister(all ...prometheus.Collector) {
	for _, c := range all {
		if err := r.Register(c); err != nil {
			panic(err)
		}
	}
}

func (recorder) Unregister(prometheus.Collector) bool { return true }

// scraped lists the labels that Prometheus adds to every metric.
var scraped = []string{"job", "instance"}

// query is a PromQL expression and its location in a file.
type query struct{ at, expr string }

func rules(t *testing.T) (queries []query, recorded []string, alerts []string) {
	t.Helper()
	var file struct {
		Groups []struct {
			Rules []struct {
				Record, Alert, Expr string
				Annotations         map[string]string
			}
		}
	}
	readYAML(t, "prometheus/rules.yml", &file)
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			queries = append(queries, query{"rules.yml: " + r.Record + r.Alert, r.Expr})
			if r.Record != "" {
				recorded = append(recorded, r.Record)
				continue
			}
			alerts = append(alerts, r.Alert)
			if want := "docs/operations.md#" + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
				t.Errorf("rules.yml: %s has the runbook %q, want %s", r.Alert, r.Annotations["runbook_url"], want)
			}
			if r.Annotations["summary"] == "" {
				t.Errorf("rules.yml: %s has no summary", r.Alert)
			}
		}
	}
	return queries, recorded, alerts
}

type panel struct {
	Title, Type, Description string
	Targets                  []struct{ Expr string }
	Datasource               struct{ UID string }
	GridPos                  struct{ H, W, X, Y int }
}

type dashboard struct {
	UID         string
	Panels      []panel
	Annotations struct{ List []struct{ Name, Expr string } }
	Templating  struct {
		List []struct{ Name, Type, Definition string }
	}
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	data, err := os.ReadFile("grafana/dashboards/millrace.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d dashboard) queries() (out []query) {
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			out = append(out, query{"dashboard: " + p.Title, target.Expr})
		}
	}
	for _, a := range d.Annotations.List {
		out = append(out, query{"dashboard: annotation " + a.Name, a.Expr})
	}
	for _, v := range d.Templating.List {
		if v.Type == "query" {
			out = append(out, query{"dashboard: variable " + v.Name, v.Definition})
		}
	}
	return out
}

var (
	// metricForm matches metrics and functions; a function is followed by (.
	metricForm   = regexp.MustCompile(`[a-zA-Z_:][a-zA-Z0-9_:]*`)
	quotedForm   = regexp.MustCompile(`"[^"]*"`)
	bracesForm   = regexp.MustCompile(`\{[^}]*\}`)
	groupingForm = regexp.MustCompile(`\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)`)
	durationForm = regexp.MustCompile(`\[[^\]]*\]|\boffset\s+\S+`)
	valuesForm   = regexp.MustCompile(`label_values\((.*),\s*(\w+)\)`)
	selectorForm = regexp.MustCompile(`([a-zA-Z_:][a-zA-Z0-9_:]*)\{([^}]*)\}`)
	matcherForm  = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)`)
)

// names returns the metrics of an expression and the labels that it groups by.
func (q query) names() (metrics, grouping []string) {
	expr := valuesForm.ReplaceAllString(q.expr, "($1) by ($2)")
	expr = quotedForm.ReplaceAllString(expr, "")
	expr = bracesForm.ReplaceAllString(expr, " ")
	for _, g := range groupingForm.FindAllStringSubmatch(expr, -1) {
		grouping = append(grouping, strings.FieldsFunc(g[2], func(r rune) bool { return r == ',' || r == ' ' })...)
	}
	expr = groupingForm.ReplaceAllString(expr, " ")
	expr = durationForm.ReplaceAllString(expr, " ")
	for _, at := range metricForm.FindAllStringIndex(expr, -1) {
		name := expr[at[0]:at[1]]
		function := strings.HasPrefix(strings.TrimLeft(expr[at[1]:], " \n"), "(")
		if function || slices.Contains([]string{"and", "or", "unless", "bool"}, name) {
			continue
		}
		metrics = append(metrics, name)
	}
	return metrics, grouping
}

func TestQueriesUseExistingMetrics(t *testing.T) {
	queries, recorded, _ := rules(t)
	queries = append(queries, readDashboard(t).queries()...)
	if len(queries) < 30 {
		t.Fatalf("found only %d queries in rules and dashboard", len(queries))
	}
	have := allMetrics(t)
	known := slices.Clone(scraped)
	for _, labels := range have {
		known = append(known, labels...)
	}
	for _, q := range queries {
		metrics, grouping := q.names()
		if len(metrics) == 0 {
			t.Errorf("%s: found no metric in %s", q.at, q.expr)
		}
		for _, m := range metrics {
			if _, ok := have[m]; !ok && !slices.Contains(recorded, m) {
				t.Errorf("%s: the code has no metric %s", q.at, m)
			}
		}
		for _, l := range grouping {
			if !slices.Contains(known, l) {
				t.Errorf("%s: no metric has the label %s", q.at, l)
			}
		}
		for _, s := range selectorForm.FindAllStringSubmatch(q.expr, -1) {
			labels, ok := have[s[1]]
			if !ok {
				continue // reported above, or recorded by a rule
			}
			for _, m := range matcherForm.FindAllStringSubmatch(quotedForm.ReplaceAllString(s[2], ""), -1) {
				if l := m[1]; !slices.Contains(labels, l) && !slices.Contains(scraped, l) {
					t.Errorf("%s: %s has no label %s; its labels are %v", q.at, s[1], l, labels)
				}
			}
		}
	}
}

func TestDashboardIsCompleteAndProvisioned(t *testing.T) {
	d := readDashboard(t)
	var variables []string
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name)
	}
	taken := map[[2]int]string{}
	rows := 0
	for _, p := range d.Panels {
		if p.Type == "row" {
			rows++
			continue
		}
		if p.Datasource.UID != "${datasource}" {
			t.Errorf("panel %q uses the data source %q, want the variable datasource", p.Title, p.Datasource.UID)
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("panels %q and %q overlap", other, p.Title)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
	if rows == 0 || rows > 7 {
		t.Errorf("the dashboard has %d rows, want 1 to 7", rows)
	}
	for _, q := range d.queries() {
		for _, v := range regexp.MustCompile(`\$\{?(\w+)`).FindAllStringSubmatch(q.expr, -1) {
			if !strings.HasPrefix(v[1], "__") && !slices.Contains(variables, v[1]) {
				t.Errorf("%s: there is no variable %s", q.at, v[1])
			}
		}
	}
	var source struct {
		Datasources []struct{ UID, Type, URL string }
	}
	readYAML(t, "grafana/provisioning/datasources/prometheus.yml", &source)
	if len(source.Datasources) != 1 || source.Datasources[0].Type != "prometheus" || source.Datasources[0].URL != "http://prometheus:9090" {
		t.Errorf("the data source is %+v, want the Prometheus of docker-compose.yml", source.Datasources)
	}
	var provider struct {
		Providers []struct {
			Options struct{ Path string }
		}
	}
	readYAML(t, "grafana/provisioning/dashboards/millrace.yml", &provider)
	c := readCompose(t)
	mounted := func(from string) string {
		for _, v := range c.Services["grafana"].Volumes {
			if host, to, ok := strings.Cut(v, ":"); ok && host == from {
				return strings.TrimSuffix(to, ":ro")
			}
		}
		return ""
	}
	if at := mounted("./deploy/grafana/dashboards"); at == "" || len(provider.Providers) != 1 || provider.Providers[0].Options.Path != at {
		t.Errorf("Grafana reads dashboards from %+v, but they are mounted at %q", provider.Providers, at)
	}
	if at := mounted("./deploy/grafana/provisioning"); at != "/etc/grafana/provisioning" {
		t.Errorf("the provisioning is mounted at %q, want /etc/grafana/provisioning", at)
	}
}

// Each alert has a test that fires, a test that does not, and a runbook. The runbook has
// no other alerts.
func TestAlertsHaveARunbookAndATest(t *testing.T) {
	_, _, alerts := rules(t)
	if len(alerts) < 8 {
		t.Fatalf("found only %d alerts", len(alerts))
	}
	var runbook []string
	for _, h := range regexp.MustCompile(`(?m)^#+ (Millrace\w+)$`).FindAllStringSubmatch(readFile(t, "../docs/operations.md"), -1) {
		runbook = append(runbook, h[1])
	}
	slices.Sort(alerts)
	slices.Sort(runbook)
	if !slices.Equal(alerts, runbook) {
		t.Errorf("rules.yml has the alerts %v, but docs/operations.md has headings for %v", alerts, runbook)
	}
	var tests struct {
		Tests []struct {
			AlertRuleTest []struct {
				Alertname string
				ExpAlerts []yaml.Node `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	readYAML(t, "prometheus/rules_test.yml", &tests)
	firing, quiet := map[string]bool{}, map[string]bool{}
	for _, test := range tests.Tests {
		for _, a := range test.AlertRuleTest {
			if len(a.ExpAlerts) > 0 {
				firing[a.Alertname] = true
			} else {
				quiet[a.Alertname] = true
			}
		}
	}
	for _, a := range alerts {
		if !firing[a] || !quiet[a] {
			t.Errorf("rules_test.yml tests %s firing: %v, not firing: %v; want both", a, firing[a], quiet[a])
		}
	}
}

func TestMetricNamesFollowConventions(t *testing.T) {
	for _, m := range ownMetrics(t) {
		if !strings.HasPrefix(m.name, "millrace_") {
			t.Errorf("%s does not have the prefix millrace_", m.name)
		}
		if (m.kind == "counter") != strings.HasSuffix(m.name, "_total") {
			t.Errorf("%s is a %s: only the names of counters end in _total", m.name, m.kind)
		}
		if regexp.MustCompile(`_(milliseconds|ms|micros|kilobytes|mib|percent)(_|$)`).MatchString(m.name) {
			t.Errorf("%s does not use a base unit", m.name)
		}
	}
}

// The table of metrics in docs/operations.md is generated from the code; -update
// rewrites it.
func TestOperationsListsTheMetrics(t *testing.T) {
	var b strings.Builder
	b.WriteString("| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n")
	for _, m := range slices.SortedFunc(maps.Values(ownMetrics(t)), func(a, b metric) int { return cmp.Compare(a.name, b.name) }) {
		labels := "`" + strings.Join(m.labels, "`, `") + "`"
		if len(m.labels) == 0 {
			labels = ""
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.name, m.kind, labels, strings.ReplaceAll(m.help, "|", `\|`))
	}
	checkSection(t, "metrics", b.String())
}
