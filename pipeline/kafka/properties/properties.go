// Package properties turns the settings of the Java client and of librdkafka into a
// [kafka.Config]: from property files, the environment and flags. Start reading at
// [Sources.Load]; file.go parses property files and JAAS texts. Nothing in it is shared
// between goroutines.
package properties

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"millrace/pipeline/kafka"
	"millrace/pipeline/kafka/auth"
	"millrace/pipeline/nearest"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// Sources are the sources of Kafka client settings, which have the names of the Java
// client and of librdkafka. For each setting, a later field of Sources overrides an
// earlier one; a setting that no source has gets a default.
type Sources struct {
	// File is the path of a property file with names of either client; none if
	// empty. It is parsed by Java's rules: a backslash is an escape.
	File string

	// LookupEnv, with the contract of [os.LookupEnv], finds MILLRACE_SASL_USERNAME
	// for sasl.username and so on, and MILLRACE_SASL_PASSWORD_FILE for a file that
	// holds the value. An empty variable counts as not set. Nil means no environment.
	LookupEnv func(string) (string, bool)

	// Flags are settings in the form key=value, in command-line order. Secrets are
	// refused here, because other users can see a command line.
	Flags []string

	// Brokers, unless empty, is the value of the flag --brokers.
	Brokers []string

	// ClientID is the default of client.id.
	ClientID string
}

// Settings are the result of [Sources.Load].
type Settings struct {
	// Config has Brokers, ClientID, Rack, TLS, SASL and DialTimeout set.
	Config kafka.Config

	// Warnings name, each with its origin, the settings that were ignored.
	Warnings []string

	entries map[string]entry // by the property's main name
}

// An entry is the value of a setting in a source.
type entry struct {
	value  string
	origin string // "--brokers", "-X", an environment name, file:line, "default"
}

// A property is a setting that Millrace supports.
type property struct {
	name    string
	aliases []string // other names of the same property
	help    string
	secret  bool
	def     string // default value, for display
	// set stores the value in the configuration. Its error does not repeat a
	// secret. It is nil if the property has expand.
	set func(c *kafka.Config, value string) error
	// expand returns the settings that the value represents, if there are several
	// or they have another name.
	expand func(value string) ([]setting, error)
}

type setting struct{ name, value string }

// DefaultBroker is the broker address if none is set.
const DefaultBroker = "127.0.0.1:9092"

const envPrefix = "MILLRACE_"

// endpointAlgorithm is the only setting whose empty value has a meaning: names in
// certificates are not to be checked.
const endpointAlgorithm = "ssl.endpoint.identification.algorithm"

// properties returns the supported properties in display order.
func properties() []property {
	return slices.Concat(connectionProperties(), saslProperties(), tlsProperties())
}

func connectionProperties() []property {
	return []property{
		{name: "bootstrap.servers", aliases: []string{"metadata.broker.list", "brokers"}, def: DefaultBroker,
			help: "addresses of brokers to connect to first: host:port,host:port (flag --brokers)",
			set: func(c *kafka.Config, v string) error {
				c.Brokers = nil
				for b := range strings.SplitSeq(v, ",") {
					if b = strings.TrimSpace(b); b != "" {
						c.Brokers = append(c.Brokers, b)
					}
				}
				return nil
			}},
		{name: "client.id", help: "client name in logs and quotas of brokers", def: "the program's name and version",
			set: func(c *kafka.Config, v string) error { c.ClientID = v; return nil }},
		{name: "client.rack", help: "rack of this client, to read from a replica in the same rack",
			set: func(c *kafka.Config, v string) error { c.Rack = v; return nil }},
		{name: "socket.connection.setup.timeout.ms", help: "timeout for a connection attempt, including TLS", def: "10000",
			set: func(c *kafka.Config, v string) error {
				ms, err := strconv.Atoi(v)
				if err != nil || ms <= 0 || ms > 24*3600*1000 {
					return errors.New("want a number of milliseconds, from 1 to one day")
				}
				c.DialTimeout = time.Duration(ms) * time.Millisecond
				return nil
			}},
		{name: "security.protocol", help: "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL", def: "derived from the other settings",
			set: setProtocol},
	}
}

func saslProperties() []property {
	return []property{
		{name: "sasl.mechanism", aliases: []string{"sasl.mechanisms"}, help: auth.MechanismsInWords,
			set: func(c *kafka.Config, v string) error {
				v = strings.ToUpper(v)
				if !slices.Contains([]string{auth.MechanismPlain, auth.MechanismScram256, auth.MechanismScram512, auth.MechanismOAuth}, v) {
					return fmt.Errorf("%q is not supported; want %s", v, auth.MechanismsInWords)
				}
				c.SASL.Mechanism = v
				return nil
			}},
		{name: "sasl.username", help: "user for PLAIN and SCRAM",
			set: func(c *kafka.Config, v string) error { c.SASL.Username = v; return nil }},
		{name: "sasl.password", secret: true, help: "password for PLAIN and SCRAM",
			set: func(c *kafka.Config, v string) error { c.SASL.Password = auth.NewSecret(v); return nil }},
		{name: "sasl.jaas.config", secret: true, help: "user and password, or the OAuth client, in the form of the Java client",
			expand: expandJAAS},
		{name: auth.OAuthKeyURL, help: "URL of the token endpoint for OAUTHBEARER (client-credentials grant)",
			set: func(c *kafka.Config, v string) error { c.SASL.OAuth.TokenURL = v; return nil }},
		{name: auth.OAuthKeyID, aliases: []string{"sasl.oauthbearer.client.id"}, help: "id of the OAuth client",
			set: func(c *kafka.Config, v string) error { c.SASL.OAuth.ClientID = v; return nil }},
		{name: auth.OAuthKeySecret, aliases: []string{"sasl.oauthbearer.client.secret"}, secret: true, help: "secret of the OAuth client",
			set: func(c *kafka.Config, v string) error { c.SASL.OAuth.ClientSecret = auth.NewSecret(v); return nil }},
		{name: "sasl.oauthbearer.scope", aliases: []string{"sasl.oauthbearer.client.credentials.scope"}, help: "scope of the requested tokens",
			set: func(c *kafka.Config, v string) error { c.SASL.OAuth.Scope = v; return nil }},
		{name: "sasl.oauthbearer.extensions", help: "extensions sent to brokers with the token: key=value,key=value",
			set: func(c *kafka.Config, v string) error {
				ext := map[string]string{}
				for pair := range strings.SplitSeq(v, ",") {
					key, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
					if !ok {
						return errors.New("want key=value,key=value")
					}
					ext[key] = value
				}
				c.SASL.OAuth.Extensions = ext
				return auth.CheckExtensions(ext)
			}},
		{name: "https.ca.location", help: "PEM file of authorities to trust for the token endpoint", def: "the system's",
			set: func(c *kafka.Config, v string) error { c.SASL.OAuth.CAFile = v; return nil }},
		{name: "sasl.allow.cleartext", help: "true: allow PLAIN and OAUTHBEARER to send secrets unencrypted to other machines", def: "false",
			set: func(c *kafka.Config, v string) (err error) { c.SASL.AllowCleartext, err = parseBool(v); return err }},
	}
}

func tlsProperties() []property {
	return []property{
		{name: "ssl.ca.location", aliases: []string{"ssl.truststore.location"}, help: "PEM file of authorities to trust", def: "the system's",
			set: func(c *kafka.Config, v string) error { c.TLS.CAFile = v; return nil }},
		{name: "ssl.ca.pem", aliases: []string{"ssl.truststore.certificates"}, help: "ssl.ca.location as PEM text",
			set: func(c *kafka.Config, v string) error { c.TLS.CAPEM = v; return nil }},
		{name: "ssl.certificate.location", help: "PEM file with the client certificate and its chain",
			set: func(c *kafka.Config, v string) error { c.TLS.CertFile = v; return nil }},
		{name: "ssl.certificate.pem", aliases: []string{"ssl.keystore.certificate.chain"}, help: "ssl.certificate.location as PEM text",
			set: func(c *kafka.Config, v string) error { c.TLS.CertPEM = v; return nil }},
		{name: "ssl.key.location", help: "PEM file with the unencrypted private key of the client",
			set: func(c *kafka.Config, v string) error { c.TLS.KeyFile = v; return nil }},
		{name: "ssl.key.pem", aliases: []string{"ssl.keystore.key"}, secret: true, help: "ssl.key.location as PEM text",
			set: func(c *kafka.Config, v string) error { c.TLS.KeyPEM = auth.NewSecret(v); return nil }},
		{name: "ssl.keystore.location", help: "one PEM file with certificate, chain and key",
			expand: func(v string) ([]setting, error) {
				return []setting{{"ssl.certificate.location", v}, {"ssl.key.location", v}}, nil
			}},
		{name: "ssl.truststore.type", help: "PEM, the only supported type", set: onlyPEM},
		{name: "ssl.keystore.type", help: "PEM, the only supported type", set: onlyPEM},
		{name: endpointAlgorithm, help: "https: the certificate of a broker must be for its host name", def: "https",
			set: func(_ *kafka.Config, v string) error {
				if !strings.EqualFold(v, "https") {
					return errors.New("the name in a broker's certificate is always checked; set the expected name with ssl.server.name")
				}
				return nil
			}},
		{name: "ssl.server.name", help: "name that the certificates of brokers are for", def: "the dialed host",
			set: func(c *kafka.Config, v string) error { c.TLS.ServerName = v; return nil }},
		{name: "enable.ssl.certificate.verification", help: "false: accept any certificate (for experiments only)", def: "true",
			set: func(c *kafka.Config, v string) error {
				verify, err := parseBool(v)
				c.TLS.InsecureSkipVerify = err == nil && !verify
				return err
			}},
	}
}

// fixedProperties are the settings that Millrace's guarantees depend on, with the values
// that Millrace uses. A source may set them only to one of these values, and not at all
// if the list is nil.
func fixedProperties() map[string][]string {
	return map[string][]string{
		"acks":                                  {"all", "-1"},
		"request.required.acks":                 {"all", "-1"},
		"enable.idempotence":                    {"true"},
		"max.in.flight.requests.per.connection": {"1", "2", "3", "4", "5"},
		"max.in.flight":                         {"1", "2", "3", "4", "5"},
		"isolation.level":                       {"read_committed"},
		"enable.auto.commit":                    {"false"},
		"enable.auto.offset.store":              {"false"},
		"allow.auto.create.topics":              {"false"},
		"check.crcs":                            {"true"},
		"partitioner":                           {"murmur2"},
		"transactional.id":                      nil,
		"transaction.timeout.ms":                nil,
		"auto.offset.reset":                     nil,
		"group.id":                              nil,
		"group.protocol":                        nil,
		"partition.assignment.strategy":         nil,
		"partitioner.class":                     nil,
		"interceptor.classes":                   nil,
	}
}

func setProtocol(c *kafka.Config, v string) error {
	switch strings.ToUpper(v) {
	case "PLAINTEXT", "SASL_PLAINTEXT":
		c.TLS.Enabled = false
	case "SSL", "SASL_SSL":
		c.TLS.Enabled = true
	default:
		return fmt.Errorf("%q is not supported; want PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL", v)
	}
	return nil
}

func onlyPEM(_ *kafka.Config, v string) error {
	if !strings.EqualFold(v, "PEM") {
		return fmt.Errorf("%q is not supported, only PEM; convert it with keytool -exportcert -rfc or openssl pkcs12", v)
	}
	return nil
}

func parseBool(v string) (bool, error) {
	switch strings.ToLower(v) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, errors.New("want true or false")
}

// Load reads the sources. The error joins all errors, each with its origin, and
// repeats no secret.
func (s Sources) Load() (*Settings, error) {
	l := &loader{
		names:   map[string]*property{},
		fixed:   fixedProperties(),
		entries: map[string]entry{},
	}
	all := properties()
	for i := range all {
		p := &all[i]
		for _, name := range append([]string{p.name}, p.aliases...) {
			l.names[name] = p
		}
	}

	if s.File != "" {
		l.file(s.File)
	}
	if s.LookupEnv != nil {
		l.environment(all, s.LookupEnv)
	}
	l.flags(s.Flags)
	if len(s.Brokers) > 0 {
		l.entries["bootstrap.servers"] = entry{strings.Join(s.Brokers, ","), "--brokers"}
	}

	if _, ok := l.entries["bootstrap.servers"]; !ok {
		l.entries["bootstrap.servers"] = entry{DefaultBroker, "default"}
	}
	if _, ok := l.entries["client.id"]; !ok && s.ClientID != "" {
		l.entries["client.id"] = entry{s.ClientID, "default"}
	}
	settings := &Settings{entries: l.entries}
	l.configure(all, &settings.Config)
	settings.Warnings = l.warnings
	if len(l.faults) > 0 {
		return nil, errors.Join(l.faults...)
	}
	return settings, nil
}

// loader collects the settings of all sources.
type loader struct {
	names    map[string]*property // by main name and alias
	fixed    map[string][]string  // see fixedProperties
	entries  map[string]entry
	warnings []string
	faults   []error
}

func (l *loader) fault(origin, key, format string, args ...any) {
	l.faults = append(l.faults, fmt.Errorf("%s: %s: %w", origin, key, fmt.Errorf(format, args...)))
}

func (l *loader) warn(origin, format string, args ...any) {
	l.warnings = append(l.warnings, origin+": "+fmt.Sprintf(format, args...))
}

func (l *loader) file(path string) {
	f, err := os.Open(path)
	if err != nil {
		l.faults = append(l.faults, fmt.Errorf("--command-config: %w", err))
		return
	}
	defer func() { _ = f.Close() }() // opened for reading only
	lines, err := parseProperties(f)
	if err != nil {
		l.faults = append(l.faults, fmt.Errorf("%s:%w", path, err)) // err begins with the line number
		return
	}
	first := map[string]string{} // origin of the previous setting, by property
	for _, line := range lines {
		origin := path + ":" + strconv.Itoa(line.number)
		if line.dropped {
			l.warn(origin, "%s: a backslash that begins no escape is dropped, as in Java; write \\\\ for a backslash", line.key)
		}
		if p, _ := l.property(line.key); p != nil {
			if at, again := first[p.name]; again {
				l.warn(origin, "%s is set again and overrides %s", line.key, at)
			}
			first[p.name] = origin
		}
		if l.set(line.key, line.value, origin) {
			continue
		}
		hint := ""
		if near := nearest.Name(line.key, slices.Sorted(maps.Keys(l.names))); near != "" {
			hint = "; did you mean " + near + "?"
		}
		l.warn(origin, "%s is ignored: not a setting of Millrace%s", line.key, hint)
	}
}

func (l *loader) environment(all []property, lookup func(string) (string, bool)) {
	for _, p := range all {
		for _, key := range append([]string{p.name}, p.aliases...) {
			name := EnvName(key)
			value, _ := lookup(name)
			file, _ := lookup(name + "_FILE")
			switch {
			case value != "" && file != "":
				l.fault(name, key, "%s_FILE is set too: set one", name)
			case value != "":
				l.set(key, value, name)
			case file != "":
				l.set(key+".file", file, name+"_FILE")
			}
		}
	}
	for key := range l.fixed {
		if value, ok := lookup(EnvName(key)); ok {
			l.set(key, value, EnvName(key))
		}
	}
}

// EnvName returns the environment variable of a setting: MILLRACE_CLIENT_ID for
// client.id.
func EnvName(key string) string {
	return envPrefix + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(key))
}

func (l *loader) flags(flags []string) {
	const origin = "-X"
	for _, f := range flags {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			// The text may be a secret, so the error does not repeat it.
			l.faults = append(l.faults, errors.New("-X: want key=value, list or dump"))
			continue
		}
		key = strings.TrimSpace(key)
		p, fromFile := l.property(key)
		switch {
		case p != nil && p.secret && !fromFile:
			l.fault(origin, key, "other users can see a secret on the command line; use %s, %s_FILE, -X %s.file=FILE or --command-config", EnvName(key), EnvName(key), key)
		case !l.set(key, value, origin):
			hint := "-X list shows all settings"
			if near := nearest.Name(key, slices.Sorted(maps.Keys(l.names))); near != "" {
				hint = "did you mean " + near + "?"
			}
			l.fault(origin, key, "not a setting of Millrace; %s", hint)
		}
	}
}

// property returns the property with a name, nil if there is none, and whether the name
// has the suffix .file: the value is then a file name.
func (l *loader) property(key string) (p *property, fromFile bool) {
	if p := l.names[key]; p != nil {
		return p, false
	}
	key, fromFile = strings.CutSuffix(key, ".file")
	return l.names[key], fromFile
}

// set stores a setting, and reports whether its key is known.
func (l *loader) set(key, value, origin string) (known bool) {
	if allowed, ok := l.fixed[key]; ok {
		if !slices.Contains(allowed, strings.ToLower(strings.TrimSpace(value))) {
			l.fault(origin, key, "Millrace sets this itself, because its guarantees depend on it; remove it")
		}
		return true
	}
	if key == "ssl.key.password" {
		l.warn(origin, "%s is ignored: keys must not be encrypted", key)
		return true
	}
	p, fromFile := l.property(key)
	if p == nil {
		return false
	}
	if fromFile {
		data, err := os.ReadFile(value)
		if err != nil {
			l.fault(origin, key, "%w", err)
			return true
		}
		origin += " (" + value + ")"
		value = strings.TrimRight(string(data), "\r\n")
	} else if !p.secret {
		value = strings.TrimSpace(value)
	}
	if value == "" && p.name != endpointAlgorithm {
		delete(l.entries, p.name) // as if it were not set
		return true
	}
	settings, err := []setting{{p.name, value}}, error(nil)
	if p.expand != nil {
		settings, err = p.expand(value)
	}
	for _, s := range settings {
		// Apply it to an empty configuration first, so errors appear in the order of the lines.
		if err = l.names[s.name].set(&kafka.Config{}, s.value); err != nil {
			break
		}
		l.entries[s.name] = entry{s.value, origin}
	}
	if err != nil {
		l.fault(origin, key, "%w", err)
	}
	return true
}

// configure applies the entries to the configuration.
func (l *loader) configure(all []property, c *kafka.Config) {
	l.inferProtocol()
	for _, p := range all {
		if e, ok := l.entries[p.name]; ok {
			if err := p.set(c, e.value); err != nil {
				l.fault(e.origin, p.name, "%w", err)
			}
		}
	}
}

// inferProtocol enables TLS if any ssl property is set, and SASL if any sasl property is
// set. If security.protocol is set, it decides; settings that contradict it cause a
// warning and have no effect.
func (l *loader) inferProtocol() {
	var ssl, sasl string // the first property that enables it
	for _, name := range slices.Sorted(maps.Keys(l.entries)) {
		switch {
		case strings.HasPrefix(name, "ssl.") || name == "enable.ssl.certificate.verification":
			ssl = cmp.Or(ssl, name)
		case strings.HasPrefix(name, "sasl.") && name != "sasl.allow.cleartext":
			sasl = cmp.Or(sasl, name)
		}
	}
	given, ok := l.entries["security.protocol"]
	if !ok {
		protocol := "PLAINTEXT"
		if ssl != "" {
			protocol = "SSL"
		}
		if sasl != "" {
			protocol = "SASL_" + protocol
		}
		if protocol != "PLAINTEXT" {
			l.entries["security.protocol"] = entry{protocol, "because of " + strings.Join(slices.DeleteFunc([]string{ssl, sasl}, func(s string) bool { return s == "" }), " and ")}
		}
	} else {
		protocol := strings.ToUpper(given.value) // valid: set has checked it
		if ssl != "" && !strings.HasSuffix(protocol, "SSL") {
			l.warn(l.entries[ssl].origin, "%s has no effect with security.protocol=%s (%s)", ssl, given.value, given.origin)
		}
		if !strings.HasPrefix(protocol, "SASL_") {
			if sasl != "" {
				l.warn(l.entries[sasl].origin, "%s has no effect with security.protocol=%s (%s)", sasl, given.value, given.origin)
			}
			for name := range l.entries {
				if strings.HasPrefix(name, "sasl.") {
					delete(l.entries, name)
				}
			}
			return
		}
		sasl = "security.protocol"
	}
	if sasl != "" && len(l.faults) == 0 { // with faults, it may be missing because it is invalid
		if _, ok := l.entries["sasl.mechanism"]; !ok {
			l.fault(l.entries[sasl].origin, "sasl.mechanism", "not set, but %s enables SASL; want %s", sasl, auth.MechanismsInWords)
		}
	}
}

// Dump writes each setting with its value and origin, and the settings that are fixed.
// Secrets are redacted.
func (s *Settings) Dump(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, p := range properties() {
		e, ok := s.entries[p.name]
		switch {
		case !ok && p.def == "":
			continue
		case !ok:
			e = entry{p.def, "default"}
		case p.secret:
			e.value = auth.NewSecret(e.value).String()
		case strings.Contains(e.value, "\n"): // PEM as text
			e.value = strings.ReplaceAll(e.value, "\n", "\\n")
		}
		fmt.Fprintf(tw, "%s\t= %s\t# %s\n", p.name, e.value, e.origin)
	}
	for _, fixed := range []setting{
		{"acks", "all"}, {"enable.idempotence", "true"}, {"isolation.level", "read_committed"},
		{"enable.auto.commit", "false"}, {"allow.auto.create.topics", "false"}, {"partitioner", "murmur2"},
	} {
		fmt.Fprintf(tw, "%s\t= %s\t# set by Millrace\n", fixed.name, fixed.value)
	}
	return tw.Flush()
}

// ListProperties writes the settings that [Sources] supports, one per line.
func ListProperties(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, p := range properties() {
		var notes []string
		if p.def != "" {
			notes = append(notes, "default: "+p.def)
		}
		if p.secret {
			notes = append(notes, "secret: not with -X")
		}
		if len(p.aliases) > 0 {
			notes = append(notes, "also "+strings.Join(p.aliases, ", "))
		}
		help := p.help
		if len(notes) > 0 {
			help += " (" + strings.Join(notes, "; ") + ")"
		}
		fmt.Fprintf(tw, "%s\t%s\n", p.name, help)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprint(w, "\nKEY.file=FILE reads the value of any setting from a file. In the environment: use "+EnvName("client.id")+
		" for client.id,\n"+EnvName("sasl.password")+"_FILE for a file with sasl.password. -X dump shows each setting and its origin.\n")
	return err
}
