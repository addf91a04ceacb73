package properties

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"millrace/pipeline/kafka/auth"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
)

// A propertyLine is one setting of a property file.
type propertyLine struct {
	number     int // number of its first line
	key, value string
	dropped    bool // a backslash before a character that needs none was removed
}

// parseProperties parses a property file in the format of java.util.Properties. A
// setting is key=value, key:value or key value; comments begin with # or !. A backslash
// at the end of a line continues the line. Elsewhere it begins an escape: \t, \n, \r,
// \f, \uXXXX; before any other character it is dropped. Errors begin with the line
// number.
func parseProperties(r io.Reader) ([]propertyLine, error) {
	const maxLine = 1 << 20
	var out []propertyLine
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxLine)
	number := 0
	for sc.Scan() {
		number++
		first := number
		text := sc.Text()
		if first == 1 {
			text = strings.TrimPrefix(text, "\uFEFF") // some editors write a byte order mark
		}
		text = strings.TrimLeft(text, " \t\f")
		if text == "" || text[0] == '#' || text[0] == '!' {
			continue
		}
		for continued(text) {
			text = text[:len(text)-1]
			if !sc.Scan() {
				break
			}
			number++
			text += strings.TrimLeft(sc.Text(), " \t\f")
			if len(text) > maxLine {
				return nil, fmt.Errorf("%d: the line is longer than %d bytes", first, maxLine)
			}
		}
		key, value := splitProperty(text)
		line := propertyLine{number: first}
		var err error
		if line.key, _, err = unescape(key); err == nil {
			line.value, line.dropped, err = unescape(value)
		}
		if err != nil {
			return nil, fmt.Errorf("%d: %w", first, err)
		}
		out = append(out, line)
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("%d: %w", number+1, err)
	}
	return out, nil
}

// continued reports whether a line ends in an odd number of backslashes.
func continued(line string) bool {
	return (len(line)-len(strings.TrimRight(line, `\`)))%2 == 1
}

// splitProperty splits at the first separator that is not escaped: whitespace with at
// most one = or : in it.
func splitProperty(line string) (key, value string) {
	end := len(line)
	for i := 0; i < len(line); i++ {
		if line[i] == '\\' {
			i++
			continue
		}
		if strings.IndexByte("=: \t\f", line[i]) >= 0 {
			end = i
			break
		}
	}
	value = strings.TrimLeft(line[end:], " \t\f")
	if value != "" && (value[0] == '=' || value[0] == ':') {
		value = strings.TrimLeft(value[1:], " \t\f")
	}
	return line[:end], value
}

// unescape resolves the escapes of a key or value. dropped reports that it removed a
// backslash before a character that needs none.
func unescape(s string) (out string, dropped bool, err error) {
	if !strings.Contains(s, `\`) {
		return s, false, nil
	}
	var b strings.Builder
	var high rune // first half of a surrogate pair whose second half has not been read; 0 if none
	// pair writes a rune and joins surrogate pairs. -1 only flushes an unpaired half.
	pair := func(r rune) {
		if high != 0 {
			if whole := utf16.DecodeRune(high, r); whole != unicode.ReplacementChar {
				b.WriteRune(whole)
				high = 0
				return
			}
			b.WriteRune(unicode.ReplacementChar)
			high = 0
		}
		switch {
		case r >= 0xD800 && r < 0xDC00:
			high = r
		case r >= 0:
			b.WriteRune(r)
		}
	}
	for i := 0; i < len(s); {
		if s[i] != '\\' {
			if high != 0 {
				pair(-1)
			}
			b.WriteByte(s[i])
			i++
			continue
		}
		i++
		if i == len(s) {
			break
		}
		c := s[i]
		i++
		switch c {
		case 't', 'n', 'r', 'f':
			pair(map[byte]rune{'t': '\t', 'n': '\n', 'r': '\r', 'f': '\f'}[c])
		case 'u':
			if i+4 > len(s) {
				return "", false, errors.New(`\u is not followed by four hexadecimal digits`)
			}
			n, err := strconv.ParseUint(s[i:i+4], 16, 16)
			if err != nil {
				return "", false, errors.New(`\u is not followed by four hexadecimal digits`)
			}
			i += 4
			pair(rune(n))
		default:
			pair(-1)
			dropped = dropped || strings.IndexByte("\\=: #!\"'", c) < 0
			b.WriteByte(c)
		}
	}
	pair(-1)
	return b.String(), dropped, nil
}

// expandJAAS translates the Java client's login configuration:
//
//	org.apache.kafka.common.security.scram.ScramLoginModule required username="u" password="p";
//
// Errors do not repeat the text: it holds a password.
func expandJAAS(text string) ([]setting, error) {
	words, err := jaasWords(text)
	if err != nil {
		return nil, err
	}
	if len(words) < 2 || words[0] == "=" || words[1] == "=" {
		return nil, errors.New(`want MODULE required key="value" ...;`)
	}
	module := words[0][strings.LastIndex(words[0], ".")+1:]
	names := map[string]string{"username": "sasl.username", "password": "sasl.password"}
	var out []setting
	switch module {
	case "PlainLoginModule":
	case "ScramLoginModule": // sasl.mechanism selects SCRAM-SHA-256 or SCRAM-SHA-512
	case "OAuthBearerLoginModule":
		names = map[string]string{"clientId": auth.OAuthKeyID, "clientSecret": auth.OAuthKeySecret, "scope": "sasl.oauthbearer.scope"}
	default:
		return nil, errors.New("only PlainLoginModule, ScramLoginModule and OAuthBearerLoginModule are supported")
	}
	var extensions []string
	for rest := words[2:]; len(rest) > 0; rest = rest[3:] {
		if len(rest) < 3 || rest[1] != "=" || rest[0] == "=" {
			return nil, errors.New(`after the module and its flag, want options as key="value"; quote a value with characters other than letters and digits`)
		}
		key, value := rest[0], rest[2]
		switch name, ok := names[key]; {
		case ok:
			out = append(out, setting{name, value})
		case module == "OAuthBearerLoginModule" && strings.HasPrefix(key, "extension_"):
			extensions = append(extensions, strings.TrimPrefix(key, "extension_")+"="+value)
		default:
			return nil, fmt.Errorf("option %d of %s is not supported; want %s", 1+len(words[2:])/3-len(rest)/3, module, strings.Join(slices.Sorted(maps.Keys(names)), ", "))
		}
	}
	if extensions != nil {
		out = append(out, setting{"sasl.oauthbearer.extensions", strings.Join(extensions, ",")})
	}
	return out, nil
}

// jaasWords splits the text before the semicolon into words, quoted strings and "=". It
// does not distinguish a quoted "=" from an unquoted one: in valid text, no quoted "="
// appears where an unquoted one can.
func jaasWords(s string) ([]string, error) {
	var words []string
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == ';':
			if strings.TrimSpace(s[i+1:]) != "" {
				return nil, errors.New("there is text after the semicolon: only one login module is supported")
			}
			return words, nil
		case c == '=':
			words = append(words, "=")
			i++
		case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f':
			i++
		case c == '"' || c == '\'':
			var b strings.Builder
			for i++; i < len(s) && s[i] != c; i++ {
				if s[i] == '\\' && i+1 < len(s) {
					i++
				}
				b.WriteByte(s[i])
			}
			if i >= len(s) {
				return nil, errors.New("a quote is not closed")
			}
			words = append(words, b.String())
			i++
		default:
			end := i
			for end < len(s) && strings.IndexByte("=;\"' \t\n\r\f", s[end]) < 0 {
				end++
			}
			words = append(words, s[i:end])
			i = end
		}
	}
	return nil, errors.New("the semicolon at the end is missing")
}
