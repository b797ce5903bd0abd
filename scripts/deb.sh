#!/usr/bin/env bash
# Build dist/refgenfs_VERSION_ARCH.deb, for the distribution and the Python of the machine that it is built on.
#
# Environment:
#   DEB_VERSION      its version (default: pyproject.toml's, and of which distribution it is: 0.1.0+debian12)
#   DEB_OUT          the folder that it is put into (default: dist)
#   DEB_COMPRESSION  an option of dpkg-deb (default: -Zxz)
#   DEBFULLNAME, DEBEMAIL  who builds it, for the changelog
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

python=/usr/bin/python3  # the distribution's: it is what the package runs with
out=${DEB_OUT:-dist}
if [[ $out == dist ]]; then build=build/deb; else build=$out/build; fi

say() { printf 'deb: %s (%d s)\n' "$*" "$SECONDS"; }

quietly() {
    if ! "$@" </dev/null >>"$build/log" 2>&1; then
        tail -n 25 "$build/log" | sed 's/^/  | /' >&2
        printf 'deb: failed: %s (the whole log: %s)\n' "$*" "$build/log" >&2
        exit 1
    fi
}

version=${DEB_VERSION:-}
if [[ -z $version ]]; then
    upstream=$("$python" -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')
    version=$upstream+$(. /etc/os-release && printf '%s%s' "$ID" "${VERSION_ID:-}")
fi
if ! dpkg --validate-version "$version" || [[ $version == *[:-]* ]]; then
    echo "deb: $version is no version of such a package: digits, letters, and . + ~" >&2
    exit 2
fi
# The same sources make the same package, as far as the Python libraries are the same.
stamp=$(git log -1 --format=%ct 2>/dev/null || date +%s)

rm -rf "$build"
source=$build/refgenfs-$version
mkdir -p "$source" "$out"
tar -c --exclude=__pycache__ README.md CHANGELOG.md LICENSE pyproject.toml refgenfs systemd mount docs debian \
    | tar -x -C "$source"
cat >"$source/debian/changelog" <<END
refgenfs ($version) unstable; urgency=medium

  * See changelog.gz for what changed.

 -- ${DEBFULLNAME:-The refgenfs authors} <${DEBEMAIL:-refgenfs@localhost}>  $(date -R -u -d "@$stamp")
END

say "wheels, for $("$python" -V)"
quietly "$python" -m venv "$source/debian/tools"
quietly "$source/debian/tools/bin/pip" wheel --no-input --disable-pip-version-check -w "$source/debian/wheels" \
    "$source"
say "refgenfs $version"
quietly env -C "$source" SOURCE_DATE_EPOCH="$stamp" DEB_COMPRESSION="${DEB_COMPRESSION:--Zxz}" \
    dpkg-buildpackage --build=binary --no-sign
package=$build/refgenfs_${version}_$(dpkg --print-architecture).deb
if [[ $out == dist ]] && command -v lintian >/dev/null; then
    say "lintian"
    quietly lintian --tag-display-limit 0 --fail-on error "$package"
fi
mv -f "$package" "$out/"
rm -rf "$source"
say "$out/${package##*/}"
