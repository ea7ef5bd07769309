// Command protobuf says how upstream's types look on the wire, for the crate kube-protobuf.
//
//	protobuf table           the table of all kinds and messages (controllers/protobuf/schema.txt)
//	protobuf random N SEED   N objects of every kind, made up: group, version, kind, protobuf in base64, JSON; a line each
//	protobuf read            objects in base64, a line each: their JSON
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"reflect"
	"sort"
	"strconv"
	"strings"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/resource"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/scheme"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

func main() {
	for _, add := range []func(*runtime.Scheme) error{apiextensions.AddToScheme, apiregistration.AddToScheme, metav1.AddMetaToScheme} {
		if err := add(scheme.Scheme); err != nil {
			panic(err)
		}
	}
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	if len(os.Args) == 2 && os.Args[1] == "table" {
		table(out)
		return
	}
	if len(os.Args) == 4 && os.Args[1] == "random" {
		n, seed := number(os.Args[2]), number(os.Args[3])
		random(out, n, int64(seed))
		return
	}
	if len(os.Args) == 2 && os.Args[1] == "read" {
		read(out)
		return
	}
	fmt.Fprintln(os.Stderr, "usage: protobuf table | protobuf random N SEED | protobuf read")
	os.Exit(2)
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%q is no number\n", text)
		os.Exit(2)
	}
	return n
}

type marshaler interface {
	Size() int
	MarshalTo([]byte) (int, error)
}

var (
	marshalerType = reflect.TypeOf((*marshaler)(nil)).Elem()
	jsonType      = reflect.TypeOf((*json.Marshaler)(nil)).Elem()
	// Types whose JSON is not their structure.
	special = map[reflect.Type]string{
		reflect.TypeOf(resource.Quantity{}):    "quantity",
		reflect.TypeOf(metav1.Time{}):          "time",
		reflect.TypeOf(metav1.MicroTime{}):     "microtime",
		reflect.TypeOf(intstr.IntOrString{}):   "intorstring",
		reflect.TypeOf(runtime.RawExtension{}): "raw",
		reflect.TypeOf(apiextensions.JSON{}):   "raw",
		reflect.TypeOf(metav1.FieldsV1{}):      "raw",
	}
)

// What a type cannot be told of in the table, and so no kind that holds it.
type unsupported struct{ what string }

type walker struct {
	names map[reflect.Type]string
	texts map[reflect.Type][]string
	bad   map[reflect.Type]bool
}

func typeName(t reflect.Type) string {
	parts := strings.Split(t.PkgPath(), "/")
	if len(parts) < 2 {
		panic(unsupported{t.String()})
	}
	return strings.Join(parts[len(parts)-2:], ".") + "." + t.Name()
}

func (w *walker) code(t reflect.Type) string {
	if name, ok := special[t]; ok {
		return name
	}
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "bool"
	case reflect.Int32, reflect.Int64, reflect.Int:
		return "int"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "bytes"
		}
		if reflect.PointerTo(t).Implements(marshalerType) && t.Elem().Kind() == reflect.String {
			return "strings"
		}
	case reflect.Struct:
		if reflect.PointerTo(t).Implements(jsonType) {
			panic(unsupported{t.String()})
		}
		w.message(t)
		if w.bad[t] {
			panic(unsupported{t.String()})
		}
		return typeName(t)
	}
	panic(unsupported{t.String()})
}

func (w *walker) message(t reflect.Type) {
	if _, ok := w.names[t]; ok {
		return
	}
	w.names[t] = typeName(t)
	defer func() {
		if r := recover(); r != nil {
			why, ok := r.(unsupported)
			if !ok {
				panic(r)
			}
			fmt.Fprintf(os.Stderr, "left out: %s for %s\n", typeName(t), why.what)
			w.bad[t] = true
			panic(why)
		}
	}()
	w.fields(t)
}

func (w *walker) fields(t reflect.Type) {
	for i := 0; i < t.NumField(); i++ {
		f := t.Field(i)
		wire, name := f.Tag.Get("protobuf"), strings.Split(f.Tag.Get("json"), ",")
		if wire == "" {
			if f.Type == reflect.TypeOf(metav1.TypeMeta{}) || name[0] == "-" {
				continue
			}
			panic(unsupported{t.String() + "." + f.Name})
		}
		if wire == "-" {
			continue
		}
		has := func(option string) bool {
			for _, o := range name[1:] {
				if o == option {
					return true
				}
			}
			return false
		}
		ft, flags := f.Type, ""
		pointer := ft.Kind() == reflect.Pointer
		if pointer {
			ft = ft.Elem()
		}
		code := ""
		isList := ft.Kind() == reflect.Slice && ft.Elem().Kind() != reflect.Uint8 && !reflect.PointerTo(ft).Implements(marshalerType)
		switch {
		case ft.Kind() == reflect.Map:
			value := ft.Elem()
			if value.Kind() == reflect.Pointer {
				value = value.Elem()
			}
			code = "map " + w.code(value)
		case isList:
			value := ft.Elem()
			if value.Kind() == reflect.Pointer {
				value = value.Elem()
			}
			code = "list " + w.code(value)
		default:
			code = "one " + w.code(ft)
			if !pointer && (has("omitempty") || has("omitzero")) {
				flags += " omitzero"
			}
		}
		if has("inline") || (f.Anonymous && name[0] == "") {
			flags += " inline"
		}
		json := name[0]
		if json == "" {
			json = "-"
		}
		w.texts[t] = append(w.texts[t], fmt.Sprintf("%s %s %s%s", strings.Split(wire, ",")[1], json, code, flags))
	}
}

func kinds() []schema.GroupVersionKind {
	var all []schema.GroupVersionKind
	for gvk, t := range scheme.Scheme.AllKnownTypes() {
		if gvk.Version == runtime.APIVersionInternal || !reflect.PointerTo(t).Implements(marshalerType) {
			continue
		}
		// What requests say, and what every group has again.
		if strings.HasSuffix(gvk.Kind, "Options") || gvk.Kind == "WatchEvent" {
			continue
		}
		if strings.HasSuffix(t.PkgPath(), "meta/v1") && !(gvk.Group == "" && gvk.Version == "v1") && gvk.Group != "meta.k8s.io" {
			continue
		}
		// Lists are the same two fields everywhere; and what is stable is not asked for by an older name.
		if strings.HasSuffix(gvk.Kind, "List") || (strings.Contains(gvk.Version, "alpha") || strings.Contains(gvk.Version, "beta")) && isStable(gvk) {
			continue
		}
		all = append(all, gvk)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].String() < all[j].String() })
	return all
}

func isStable(gvk schema.GroupVersionKind) bool {
	for _, version := range []string{"v1", "v2"} {
		if scheme.Scheme.Recognizes(schema.GroupVersionKind{Group: gvk.Group, Version: version, Kind: gvk.Kind}) {
			return true
		}
	}
	return false
}

func (w *walker) try(t reflect.Type) (ok bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, is := r.(unsupported); !is {
				panic(r)
			}
			ok = false
		}
	}()
	w.message(t)
	return !w.bad[t]
}

func table(out *bufio.Writer) {
	w := &walker{map[reflect.Type]string{}, map[reflect.Type][]string{}, map[reflect.Type]bool{}}
	fmt.Fprintln(out, "# How built-in types look in protobuf and in JSON: made from the Go types of k8s.io/api by `protobuf table` (e2e/upstream/protobuf).")
	fmt.Fprintln(out, "# kind GROUP VERSION KIND MESSAGE; message NAME, then its fields: NUMBER JSON-NAME one|list|map TYPE [omitzero] [inline]")
	for _, gvk := range kinds() {
		t := scheme.Scheme.AllKnownTypes()[gvk]
		if !w.try(t) {
			continue
		}
		group := gvk.Group
		if group == "" {
			group = "-"
		}
		fmt.Fprintf(out, "kind %s %s %s %s\n", group, gvk.Version, gvk.Kind, typeName(t))
	}
	var types []reflect.Type
	for t := range w.names {
		if !w.bad[t] {
			types = append(types, t)
		}
	}
	sort.Slice(types, func(i, j int) bool { return typeName(types[i]) < typeName(types[j]) })
	for _, t := range types {
		fmt.Fprintf(out, "message %s\n", typeName(t))
		for _, text := range w.texts[t] {
			fmt.Fprintln(out, text)
		}
	}
}

func random(out *bufio.Writer, n int, seed int64) {
	codecs := serializer.NewCodecFactory(scheme.Scheme)
	fill := fuzzer.FuzzerFor(metafuzzer.Funcs, rand.NewSource(seed), codecs)
	wire := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	w := &walker{map[reflect.Type]string{}, map[reflect.Type][]string{}, map[reflect.Type]bool{}}
	for _, gvk := range kinds() {
		if !w.try(scheme.Scheme.AllKnownTypes()[gvk]) {
			continue
		}
		for i := 0; i < n; i++ {
			object, err := scheme.Scheme.New(gvk)
			if err != nil {
				panic(err)
			}
			fill.Fill(object)
			object.GetObjectKind().SetGroupVersionKind(gvk)
			var bytes strings.Builder
			if err := wire.Encode(object, &bytes); err != nil {
				fmt.Fprintf(os.Stderr, "%s: %v\n", gvk, err)
				continue
			}
			// What a reader of protobuf sees, not what was written: nil and empty lists are one there.
			read, _, err := wire.Decode([]byte(bytes.String()), nil, nil)
			if err != nil {
				panic(err)
			}
			read.GetObjectKind().SetGroupVersionKind(gvk)
			text, err := json.Marshal(read)
			if err != nil {
				fmt.Fprintf(os.Stderr, "%s: %v\n", gvk, err)
				continue
			}
			fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\n", gvk.Group, gvk.Version, gvk.Kind, base64.StdEncoding.EncodeToString([]byte(bytes.String())), text)
		}
	}
}

func read(out *bufio.Writer) {
	wire := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		bytes, err := base64.StdEncoding.DecodeString(lines.Text())
		if err != nil {
			panic(err)
		}
		object, gvk, err := wire.Decode(bytes, nil, nil)
		if err != nil {
			fmt.Fprintf(out, "%v\n", err)
			continue
		}
		object.GetObjectKind().SetGroupVersionKind(*gvk)
		text, err := json.Marshal(object)
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(out, "%s\n", text)
	}
}
